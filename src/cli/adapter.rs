//! `firebrick adapter`: what an adapter is, and its other format.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use firebrick::prelude::*;
use serde_json::{Value, json};

use super::options::{Everywhere, check_is_new};
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
        /// The format to write: Hugging Face PEFT's or mlx-lm's
        #[arg(long)]
        to: To,
        /// Adapter folder
        adapter: PathBuf,
        /// Folder to write; it must not exist, or be empty
        output: PathBuf,
    },
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum To {
    Peft,
    Mlx,
}

impl To {
    fn format(self) -> Format {
        match self {
            Self::Peft => Format::Peft,
            Self::Mlx => Format::Mlx,
        }
    }
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
        match verb {
            Verb::Show { adapter: folder } => {
                let adapter = Adapter::<B::InnerBackend>::load(&folder, &device)?;
                let facts = facts(&adapter, &folder);
                if everywhere.json {
                    output::json_line(&facts)?;
                } else {
                    output::text(&format!("{}\n", description(&adapter, &facts)))?;
                }
            }
            Verb::Convert { to, adapter: folder, output } => {
                // Two formats in one folder would share a config.
                check_is_new(&output, "convert")?;
                let adapter = Adapter::<B::InnerBackend>::load(&folder, &device)?;
                adapter.save(&output, to.format())?;
                if everywhere.json {
                    output::json_line(&facts(&adapter, &output))?;
                } else {
                    everywhere.note(format_args!(
                        "{} modules written to {}",
                        adapter.modules().len(),
                        output.display()
                    ));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn facts<B: KernelBackend>(adapter: &Adapter<B>, folder: &Path) -> Value {
    let modules = adapter.modules().iter().map(|(path, module)| {
        let (rank, inputs, outputs) = (module.a.dims()[0], module.a.dims()[1], module.b.dims()[0]);
        json!({"path": path, "rank": rank, "scale": module.scale, "in": inputs, "out": outputs})
    });
    json!({
        "adapter": folder.to_string_lossy(), "base_model": adapter.config().get("base_model_name_or_path"), "base_fingerprint": adapter.base(),
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
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
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
