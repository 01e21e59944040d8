//! What is on stdout and stderr, and what it means when nobody reads them.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::command::{binary, copy, data, golden, inside, json_of, names, run, rust_tiny, set_config, text};

/// A small job for every verb that has JSON, with its own outputs.
fn jobs(folder: &tempfile::TempDir, rows: &str) -> Vec<String> {
    let (model, place) = (golden("qwen2-tiny"), |name: &str| text(&folder.path().join(name)));
    vec![
        format!("generate --model {model} --tokens 5,6 --max-tokens 3 --seed 1"),
        format!("logits --model {model} --tokens 5,6 --output {}", place("logits")),
        format!("score --model {model} --data {rows}/valid.jsonl --max-seq-len 24"),
        format!("train --model {model} --data {rows} --steps 2 --max-seq-len 16 --output {}", place("trained")),
        format!("train --model {model} --data {rows} --dry-run --output {}", place("never")),
        format!("merge --model {model} --adapter {model}/lora_qv --output {}", place("merged")),
        format!("adapter show {model}/lora_qv"),
        format!("adapter convert --to mlx {model}/lora_qv {}", place("mlx")),
    ]
}

#[test]
fn with_json_and_quiet_stdout_is_json_and_stderr_is_empty() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), data(4, 2));
    for job in jobs(&folder, &text(rows.path())) {
        let ran = run(&job, &["--json", "--quiet"]).ok();
        assert_eq!(ran.err, "", "{job}");
        assert!(!ran.lines().is_empty(), "{job}");
    }
    assert!(!names(folder.path()).contains(&"never".to_owned()));
}

#[test]
fn in_a_pipe_nothing_is_drawn() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), data(4, 2));
    for job in jobs(&folder, &text(rows.path())) {
        let ran = run(&job, &["-v"]).ok();
        let drawn = |text: &str| text.contains(['\u{1b}', '\r', '█', '░']);
        assert!(!drawn(&ran.out) && !drawn(&ran.err), "{job}: {}{}", ran.out, ran.err);
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let words = format!("generate --model {} --temperature 1 --max-tokens 400 --prompt a", rust_tiny());
    let mut child = binary().args(words.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn training_goes_on_when_nobody_reads() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), data(4, 2));
    let (output, path) = inside(&folder, "adapter");
    let words = format!(
        "train --json --model {} --data {} --steps 40 --max-seq-len 16 --output {output}",
        golden("qwen2-tiny"),
        text(rows.path())
    );
    let mut child = binary().args(words.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    drop(child.stderr.take());
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("valid_loss"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let metrics = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!((&last["done"], &last["steps"]), (&true.into(), &40.into()));
    assert_eq!(json_of(&path.join("adapter_config.json"))["r"], 8);
}

#[test]
fn a_full_disk_is_a_failure() {
    if !std::path::Path::new("/dev/full").exists() {
        return;
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let words = format!("adapter show {}", golden("qwen2-tiny/lora_qv"));
    let output = binary().args(words.split(' ')).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: "));
}

#[test]
fn what_a_stranger_wrote_does_not_reach_the_terminal_as_a_command() {
    let folder = copy(&golden("qwen2-tiny"));
    set_config(folder.path(), "model_type", serde_json::json!("\u{1b}]0;title\u{7}\u{9b}2J"));
    let ran = run("generate --tokens 1 --model", &[&text(folder.path())]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("\\u{1b}]0;title\\u{7}\\u{9b}2J"), "{}", ran.err);
    assert!(ran.err.chars().all(|character| character == '\n' || !character.is_control()), "{:?}", ran.err);
}
