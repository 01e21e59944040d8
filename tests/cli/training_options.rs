//! Every option of `train` does something, and the same from a file as from the command line.

use std::fs;
use std::path::Path;

use crate::command::{Ran, data, golden, inside, json_of, run};

const BASE: &str = "--quiet --steps 3 --batch-size 2 --max-seq-len 40";

fn train(rows: &Path, output: &str, more: &str) -> Ran {
    let words = format!("train --model {} --output {output} --data {} {more}", golden("qwen2-tiny"), rows.display());
    run(&words, &[])
}

/// Everything a run leaves that does not depend on the clock.
#[derive(PartialEq)]
struct Left {
    adapter: Vec<u8>,
    config: String,
    events: Vec<(String, String)>,
}

fn left(rows: &Path, output: &Path, more: &str) -> Left {
    train(rows, output.to_str().unwrap(), more).ok();
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let event = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["step"].to_string(), format!("{} {}", line["loss"], line["valid_loss"]))
    };
    Left {
        adapter: fs::read(output.join("adapter_model.safetensors")).unwrap(),
        config: fs::read_to_string(output.join("adapter_config.json")).unwrap(),
        events: metrics.lines().map(event).collect(),
    }
}

/// Short and long rows: 40 tokens are less than some of them have.
fn rows() -> tempfile::TempDir {
    let folder = data(4, 2);
    let short: String = (0..4).map(|n| format!("{{\"prompt\": \"{n}?\", \"completion\": \"{n}\"}}\n")).collect();
    for name in ["train.jsonl", "valid.jsonl"] {
        let path = folder.path().join(name);
        let all = short.clone() + &fs::read_to_string(&path).unwrap();
        fs::write(path, all).unwrap();
    }
    folder
}

#[test]
fn each_option_changes_the_run() {
    let (rows, folder) = (rows(), tempfile::tempdir().unwrap());
    let plain = left(rows.path(), &folder.path().join("plain"), BASE);
    assert!(plain == left(rows.path(), &folder.path().join("again"), BASE));
    for option in [
        "--rank 4",
        "--alpha 8",
        "--dropout 0.5",
        "--target k_proj",
        "--target all-linear",
        r"--target .*layers\.0\..*q_proj",
        "--rslora",
        "--learning-rate 1e-3",
        "--schedule constant",
        "--schedule linear",
        "--warmup-steps 2",
        "--weight-decay 0.9",
        "--gradient-accumulation 2",
        "--pack",
        "--mask-prompt",
        "--max-grad-norm 1e-3",
        "--max-grad-norm 0",
        "--seed 1",
        "--eval-every 1",
        "--over-long drop",
        "--over-long split",
        "--dtype bf16",
    ] {
        let output = folder.path().join(option.replace(|c: char| !c.is_alphanumeric(), "_"));
        let more = if option.ends_with("norm 0") {
            // Clipping shows only where there is something to clip.
            assert!(plain != left(rows.path(), &output, &format!("{BASE} --max-grad-norm 0.5")));
            format!("{BASE} {option} --learning-rate 1e-3")
        } else {
            format!("{BASE} {option}")
        };
        assert!(plain != left(rows.path(), &output, &more), "{option}");
    }
    for (option, value) in
        [("--steps 3", "--steps 2"), ("--steps 3", "--epochs 1"), ("size 2", "size 3"), ("len 40", "len 20")]
    {
        let output = folder.path().join(value.replace(' ', "_"));
        assert!(plain != left(rows.path(), &output, &BASE.replace(option, value)), "{value}");
    }
}

#[test]
fn bad_rows_end_the_run_or_are_skipped() {
    let (rows, folder) = (rows(), tempfile::tempdir().unwrap());
    let path = rows.path().join("train.jsonl");
    fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"prompt\": \"no completion\"}\n").unwrap();
    let (output, _) = inside(&folder, "adapter");
    let error = train(rows.path(), &output, BASE).error();
    assert!(error.contains("train.jsonl:9: "), "{error}");
    let plan = train(rows.path(), &output, "--dry-run --json --bad-rows skip");
    assert!(plan.err.contains("train.jsonl:9: ") && plan.err.contains("1 of 9 rows"), "{}", plan.err);
    assert_eq!(plan.json()["train_examples"], 8);
}

#[test]
fn a_config_file_says_the_same_as_the_command_line() {
    let (rows, folder) = (rows(), tempfile::tempdir().unwrap());
    let config = folder.path().join("c.toml");
    let text = "rank = 4\nalpha = 8.0\ndropout = 0.25\ntarget = \"q_proj,o_proj\"\nrslora = true\nlearning_rate = 1e-3\n\
                schedule = \"linear\"\nwarmup_steps = 1\nweight_decay = 0.1\nbatch_size = 2\ngradient_accumulation = 2\n\
                max_seq_len = 40\nsteps = 3\nmask_prompt = true\nmax_grad_norm = 0.5\nseed = 9\neval_every = 2\n\
                bad_rows = \"skip\"\nover_long = \"drop\"\npack = true\ngradient_checkpointing = true\n";
    fs::write(&config, text).unwrap();
    let flags: String = text
        .lines()
        .map(|line| {
            let (key, value) = line.split_once(" = ").unwrap();
            let value = if value == "true" { "" } else { value.trim_matches('"') };
            format!("--{} {value} ", key.replace('_', "-"))
        })
        .collect();
    let from_file = left(rows.path(), &folder.path().join("file"), &format!("--quiet --config {}", config.display()));
    assert!(from_file == left(rows.path(), &folder.path().join("flags"), &format!("--quiet {flags}")));

    let more = format!("--quiet --config {} --rank 2 --epochs 1", config.display());
    let overridden = folder.path().join("overridden");
    left(rows.path(), &overridden, &more);
    let written = json_of(&overridden.join("adapter_config.json"));
    assert_eq!((&written["r"], &written["lora_alpha"]), (&2.into(), &8.into()));
    let metrics = fs::read_to_string(overridden.join("metrics.jsonl")).unwrap();
    assert!(metrics.lines().last().unwrap().contains("\"steps\":1"), "--epochs replaces steps: {metrics}");
}

#[test]
fn a_config_error_names_file_line_and_key() {
    let (rows, folder) = (rows(), tempfile::tempdir().unwrap());
    let config = folder.path().join("c.toml");
    let (output, path) = inside(&folder, "adapter");
    let more = format!("--config {}", config.display());
    for (text, told) in [
        ("steps = 1\nrnak = 4\n", "c.toml:2: `rnak = 4`: unknown field `rnak`, expected one of `rank`"),
        ("rank = \"four\"\n", "c.toml:1: `rank = \"four\"`: "),
        ("rank = 4\nrank = 5\n", "c.toml:2: "),
        ("schedule = \"cubic\"\n", "`cubic`"),
        ("rank = -1\n", "c.toml:1: "),
        ("steps = 1\nepochs = 1\n", "`steps` and `epochs`"),
        ("batch_size = \"some\"\n", "neither a whole number nor auto"),
        ("rank 4\n", "c.toml:1: "),
    ] {
        fs::write(&config, text).unwrap();
        let error = train(rows.path(), &output, &more).error();
        assert!(error.contains(told), "{text:?}: {error}");
    }
    fs::write(&config, "dropout = 1.0\n").unwrap();
    assert!(train(rows.path(), &output, &more).misuse().contains("dropout"));
    assert!(train(rows.path(), &output, "--config /nowhere/c.toml").error().contains("/nowhere/c.toml"));
    assert!(!path.exists());
}

#[test]
fn rows_of_a_pass_are_chosen_or_told() {
    let (rows, folder) = (rows(), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    let config = folder.path().join("c.toml");
    fs::write(&config, "batch_size = \"auto\"\ngradient_accumulation = 2\n").unwrap();
    let memory = |more: &str| train(rows.path(), &output, &format!("--dry-run --json {more}")).json()["memory"].clone();
    // The rows of a step are what they would be by themselves, 4 for each accumulation, here in one pass.
    for more in ["--batch-size auto --gradient-accumulation 2", &format!("--config {}", config.display())] {
        let memory = memory(more);
        assert_eq!((&memory["batch_size"], &memory["gradient_accumulation"]), (&8.into(), &1.into()), "{more}");
    }
    let number =
        |more: &str, name: &str| memory(&format!("--batch-size 2 --max-seq-len 40 {more}"))[name].as_u64().unwrap();
    assert!(number("--gradient-checkpointing", "activations_bytes") < number("", "activations_bytes"));
    assert!(number("--pack", "pass_tokens") <= 80);
    assert!(number("", "peak_bytes") > number("", "weights_bytes"));
    let shown = train(rows.path(), &output, "--dry-run");
    assert!(shown.out.contains("memory: about ") && shown.out.contains("activations"), "{}", shown.out);
    assert!(train(rows.path(), &output, "--batch-size some").misuse().contains("neither a whole number nor auto"));
    assert!(!path.exists());
}
