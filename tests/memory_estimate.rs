//! The memory that `train --dry-run` tells beforehand against the peak that the same run has, each in a process of its own; and what becomes
//! of a run that does not fit. The models are random and of many shapes; the table that is printed has a line for each.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::{DType, TensorData};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use support::repository;
use tempfile::TempDir;

/// How far the estimate may be from the peak.
const TOLERANCE: f64 = 0.15;

/// Numbers that a seed decides.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.next() as usize % values.len()]
    }
}

/// A decoder and how it is trained.
#[derive(Debug)]
struct Drawn {
    hidden: usize,
    wide: usize,
    layers: usize,
    kv_heads: usize,
    vocabulary: usize,
    family: &'static str,
    dtype: &'static str,
    tokens: usize,
    rows: usize,
    options: String,
}

impl Drawn {
    /// The `scale` grows from one to the next, so that they span small and large ones.
    fn new(draw: &mut Draw, scale: usize) -> Self {
        let hidden = draw.of(&[128, 256, 384]) * (1 + scale / 4);
        let batch = draw.of(&[1, 2, 4]);
        let tokens = draw.of(&[96, 256, 512]) * (1 + scale / 6);
        let options = [
            format!("--batch-size {batch} --max-seq-len {tokens}"),
            format!("--rank {}", draw.of(&[4, 8, 64])),
            draw.of(&["", "--target all-linear", "--target q_proj,down_proj"]).to_owned(),
            draw.of(&["", "", "--dropout 0.1"]).to_owned(),
            draw.of(&["", "", "--gradient-checkpointing"]).to_owned(),
            draw.of(&["", "", "--pack"]).to_owned(),
            draw.of(&["", "--gradient-accumulation 2"]).to_owned(),
        ];
        Self {
            hidden,
            wide: hidden * draw.of(&[2, 3, 5]),
            layers: draw.of(&[2, 6, 10]) + scale / 2,
            kv_heads: draw.of(&[1, 2]),
            vocabulary: draw.of(&[4096, 16_384, 65_536]),
            family: draw.of(&["qwen2", "qwen3"]),
            dtype: draw.of(&["f32", "f16", "bf16", "q8"]),
            tokens,
            rows: 8,
            options: options.join(" "),
        }
    }

    /// Its folder, with random weights and the tokenizer of the examples.
    fn write(&self, folder: &Path) {
        let Self { hidden, wide, layers, kv_heads, vocabulary, family, .. } = *self;
        let heads = hidden / 64;
        let config = json!({
            "model_type": family, "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": wide,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64,
            "max_position_embeddings": 8192, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
            "hidden_act": "silu",
        });
        let mut tensors: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![vocabulary, hidden]),
            ("model.norm.weight".into(), vec![hidden]),
        ];
        for layer in 0..layers {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            let (queries, keys) = (heads * 64, kv_heads * 64);
            add("self_attn.q_proj", &[queries, hidden]);
            add("self_attn.k_proj", &[keys, hidden]);
            add("self_attn.v_proj", &[keys, hidden]);
            add("self_attn.o_proj", &[hidden, queries]);
            add("mlp.gate_proj", &[wide, hidden]);
            add("mlp.up_proj", &[wide, hidden]);
            add("mlp.down_proj", &[hidden, wide]);
            add("input_layernorm", &[hidden]);
            add("post_attention_layernorm", &[hidden]);
            if family == "qwen3" {
                add("self_attn.q_norm", &[64]);
                add("self_attn.k_norm", &[64]);
            } else {
                for (name, width) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
                    tensors.push((format!("model.layers.{layer}.self_attn.{name}.bias"), vec![width]));
                }
            }
        }
        let mut draw = Draw(1);
        let (dtype, stored) = match self.dtype {
            "f16" => (Dtype::F16, DType::F16),
            "bf16" => (Dtype::BF16, DType::BF16),
            _ => (Dtype::F32, DType::F32),
        };
        let data = |(name, shape): &(String, Vec<usize>)| {
            let value =
                |_| if name.contains("norm") { 1.0 } else { (draw.next() as f32 / (1u64 << 31) as f32 - 0.5) * 0.08 };
            let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
            TensorData::new(values, shape.clone()).convert_dtype(stored)
        };
        let data: Vec<TensorData> = tensors.iter().map(data).collect();
        let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
            (name.clone(), TensorView::new(dtype, shape.clone(), data.as_bytes()).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(repository("examples/tiny/rust-tiny").join(name), folder.join(name)).unwrap();
        }
    }

    /// Rows of all lengths up to twice the limit, and a first one that reaches it.
    fn write_rows(&self, folder: &Path) {
        let row = |row: usize| {
            let words = if row == 0 { 2 * self.tokens } else { 1 + row * 7919 % (2 * self.tokens) };
            let text: String = (0..words).map(|word| ["let ", "x ", "= ", "fn "][(row + word) % 4]).collect();
            json!({ "text": text }).to_string() + "\n"
        };
        fs::write(folder.join("train.jsonl"), (0..self.rows).map(row).collect::<String>()).unwrap();
        fs::write(folder.join("valid.jsonl"), row(1)).unwrap();
    }

    fn command(&self, folder: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firebrick"));
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        command.args(["train", "--model", &at("model"), "--data", &at("data"), "--output", &at("out")]);
        command.args("--steps 2 --json --quiet --threads 2".split(' ')).args(self.options.split_whitespace());
        if self.dtype == "q8" {
            command.args(["--dtype", "q8"]);
        }
        command.args(more);
        command
    }

    fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, write) in [("model", Self::write as fn(&Self, &Path)), ("data", Self::write_rows)] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            write(self, &path);
        }
        folder
    }
}

/// The last line of stdout.
fn last_line(mut command: Command) -> Value {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

#[test]
fn the_estimate_is_near_the_measured_peak() {
    let mut draw = Draw(2026);
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    let mut wrong = Vec::new();
    for scale in 0..12 {
        let drawn = Drawn::new(&mut draw, scale);
        let folder = drawn.folder();
        let memory = last_line(drawn.command(folder.path(), &["--dry-run"]))["memory"].clone();
        let estimated = memory["peak_bytes"].as_f64().unwrap() / 1e6;
        let measured = last_line(drawn.command(folder.path(), &[]))["peak_rss_bytes"].as_f64().unwrap() / 1e6;
        let error = estimated / measured - 1.0;
        println!("{measured:8.0} MB measured, {estimated:8.0} MB estimated, {:+6.1} %  {drawn:?}", 100.0 * error);
        println!("    {memory}");
        (least, most) = (least.min(measured), most.max(measured));
        if error.abs() > TOLERANCE {
            wrong.push(format!("{drawn:?}: {estimated:.0} MB for {measured:.0} MB"));
        }
    }
    println!("from {least:.0} to {most:.0} MB");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(most >= 8.0 * least, "from {least:.0} to {most:.0} MB is no wide range");
}

/// A decoder whose activations are most of its memory.
fn wide_batch(options: &str) -> Drawn {
    Drawn {
        hidden: 512,
        wide: 2048,
        layers: 8,
        kv_heads: 2,
        vocabulary: 4096,
        family: "qwen2",
        dtype: "f32",
        tokens: 384,
        rows: 8,
        options: format!("--max-seq-len 384 {options}"),
    }
}

/// The command with its address space limited.
fn limited(command: &Command, bytes: u64) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--as={bytes}")).arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let drawn = wide_batch("");
    let folder = drawn.folder();
    let command = |more: &str| drawn.command(folder.path(), &more.split_whitespace().collect::<Vec<_>>());
    let memory = |command: Command| last_line(command)["memory"].clone();
    // What there is moves with the limit: so the limit for any amount follows from one.
    let ample = 6 << 30;
    let told = memory(limited(&command("--dry-run --batch-size 4"), ample));
    let bytes = |memory: &Value, name: &str| memory[name].as_u64().unwrap();
    let limit_for = |available: u64| ample - bytes(&told, "available_bytes") + available;
    let peak = bytes(&told, "peak_bytes");

    // The plain run finds no room; by layer, or in smaller passes, it does, and says so.
    let limit = limit_for(peak - peak / 4);
    let refused = limited(&command("--batch-size 4"), limit).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    for named in
        ["training would take about", "MB", "--gradient-checkpointing", "--batch-size 1 --gradient-accumulation 4"]
    {
        assert!(error.contains(named), "{named}: {error}");
    }
    println!("{error}");
    assert!(!folder.path().join("out").exists(), "nothing was written");
    let by_layer = last_line(limited(&command("--batch-size 4 --gradient-checkpointing"), limit));
    let plain = last_line(command("--batch-size 4"));
    let peak_rss = |line: &Value| bytes(line, "peak_rss_bytes");
    assert!(peak_rss(&by_layer) * 3 < peak_rss(&plain) * 2, "{by_layer} {plain}");

    // Looked at beforehand, a run that does not fit shows what it is made of, and is refused too.
    let looked_at = limited(&command("--dry-run --batch-size 8"), limit).output().unwrap();
    let told: Value = serde_json::from_slice(&looked_at.stdout).unwrap();
    assert_eq!((told["memory"]["fits"].as_bool(), looked_at.status.code()), (Some(false), Some(1)));
    assert!(bytes(&told["memory"], "activations_bytes") > 0);
    assert!(String::from_utf8(looked_at.stderr).unwrap().contains("what fits: "));

    // `auto` takes the rows of a step in as few passes as fit.
    let chosen = |limit| {
        let memory = memory(limited(&command("--dry-run --batch-size auto --gradient-accumulation 2"), limit));
        (bytes(&memory, "batch_size"), bytes(&memory, "gradient_accumulation"))
    };
    assert_eq!(chosen(ample), (8, 1));
    let (size, passes) = chosen(limit);
    assert!(size < 4 && size * passes == 8, "{size} {passes}");
    let auto = last_line(limited(&command("--batch-size auto --gradient-accumulation 2"), limit));
    assert_eq!(auto["steps"], 2);

    // Wherever the limit is above what the model takes, the run ends or is refused in words: nothing is killed on the way.
    let mut refusals = 0;
    for part in [60, 75, 90, 105, 125, 140] {
        let ran = limited(&command("--batch-size 4"), limit_for(peak * part / 100)).output().unwrap();
        let error = String::from_utf8(ran.stderr).unwrap();
        let refused = ran.status.code() == Some(1) && error.starts_with("error: ") && error.contains("memory");
        assert!(ran.status.success() || refused, "at {part} %: {} {error}", ran.status);
        println!("at {part} %: {}", if refused { error.trim() } else { "ran" });
        refusals += usize::from(refused);
    }
    assert!((2..6).contains(&refusals), "{refusals} refusals");
}
