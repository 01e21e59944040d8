//! `firebrick adapter`: what an adapter is, and its other format.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use firebrick::prelude::*;
use serde_json::{Value, json};

use super::options::Everywhere;
use super::output;

/// Show an adapter, or convert it between PEFT and mlx-lm.
#[derive(Args, Clone, Debug)]
pub struct AdapterCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Clone, Debug)]
enum Verb {
    /// What the adapter is.
    Show {
        /// Adapter folder
        adapter: PathBuf,
    },
    /// Write it in the other format, losslessly.
    Convert {
        /// The format to write
        #[arg(long)]
        to: To,
        /// Adapter folder
        adapter: PathBuf,
        /// Folder to write
        output: PathBuf,
    },
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum To {
    Peft,
    Mlx,
}

impl AdapterCommand {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        everywhere.clone().dispatch(Work { verb: self.verb, everywhere })
    }
}

struct Work {
    verb: Verb,
    everywhere: Everywhere,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, everywhere } = self;
        let (facts, text) = match verb {
            Verb::Show { adapter: folder } => {
                let adapter = Adapter::<B::InnerBackend>::load(&folder, &device)?;
                let facts = facts(&adapter, &folder);
                let text = description(&adapter, &facts);
                (facts, text)
            }
            Verb::Convert { to, adapter: folder, output } => {
                if same_place(&folder, &output) {
                    bail!("{}: the output is the adapter itself", output.display());
                }
                let adapter = Adapter::<B::InnerBackend>::load(&folder, &device)?;
                adapter.save(
                    &output,
                    match to {
                        To::Peft => Format::Peft,
                        To::Mlx => Format::Mlx,
                    },
                )?;
                (
                    facts(&adapter, &output),
                    format!("{} modules written to {}", adapter.modules().len(), output.display()),
                )
            }
        };
        if everywhere.json {
            output::json_line(&facts)?
        } else {
            output::text(&format!("{text}\n"))?
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn same_place(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn facts<B: KernelBackend>(adapter: &Adapter<B>, folder: &Path) -> Value {
    let modules = adapter.modules().iter().map(|(path, module)| {
        let (rank, inputs, outputs) = (module.a.dims()[0], module.a.dims()[1], module.b.dims()[0]);
        json!({"path": path, "rank": rank, "scale": module.scale, "in": inputs, "out": outputs})
    });
    json!({
        "adapter": folder, "base_model": adapter.config().get("base_model_name_or_path"), "base_fingerprint": adapter.base(),
        "rank": adapter.config().get("r"), "alpha": adapter.config().get("lora_alpha"),
        "rslora": adapter.config().get("use_rslora"), "dropout": adapter.dropout(),
        "targets": adapter.config().get("target_modules"), "parameters": adapter.parameters(),
        "modules": modules.collect::<Vec<_>>(),
    })
}

fn description<B: KernelBackend>(adapter: &Adapter<B>, facts: &Value) -> String {
    let mut lines = Vec::new();
    for key in ["base_model", "base_fingerprint", "rank", "alpha", "rslora", "dropout", "targets", "parameters"] {
        let value = match &facts[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        lines.push(format!("{key:<17} {value}"));
    }
    lines.push(format!("{:<17} {}", "modules", adapter.modules().len()));
    for (path, module) in adapter.modules() {
        let (rank, inputs, outputs) = (module.a.dims()[0], module.a.dims()[1], module.b.dims()[0]);
        lines.push(format!("  {path}  {inputs} → {outputs}, rank {rank}, scale {}", module.scale));
    }
    lines.join("\n")
}
