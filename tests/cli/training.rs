//! `train`: what a run writes, how it is stopped, and what it refuses.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::command::{Ran, binary, data, golden, inside, json_of, keys, metrics, names, run, rust_tiny, text};

/// A short run on a golden model; later words of the same option are not allowed, so `more` must not repeat these.
fn train(rows: &Path, output: &str, more: &str) -> Ran {
    let words = format!("train --model {} --output {output} --data {} {more}", golden("qwen2-tiny"), rows.display());
    run(&words, &[])
}

fn valid_losses(folder: &Path) -> Vec<f64> {
    metrics(folder)
        .iter()
        .filter(|line| line["done"].is_null())
        .filter_map(|line| line["valid_loss"].as_f64())
        .collect()
}

#[test]
fn a_run_lowers_the_validation_loss_and_leaves_adapter_metrics_and_chart() {
    let (rows, folder) = (data(48, 8), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "new/adapter");
    let words = format!(
        "train --json --model {} --data {} --output {output} --steps 24 --max-seq-len 64 --learning-rate 2e-3 --eval-every 10",
        rust_tiny(),
        rows.path().display()
    );
    let shown = run(&words, &[]).lines();
    assert_eq!(shown, metrics(&path), "--json shows the lines of metrics.jsonl");
    let losses = valid_losses(&path);
    assert_eq!(losses.len(), 4, "before, after 10, after 20, after the last");
    assert!(losses[3] < losses[0] - 0.1, "{losses:?}");
    assert_eq!(
        names(&path),
        [".lock", "adapter_config.json", "adapter_model.safetensors", "loss.svg", "metrics.jsonl", "step-24"]
    );
    let svg = fs::read_to_string(path.join("loss.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.trim_end().ends_with("</svg>"));
    for element in ["svg", "g", "text", "title"] {
        let (opened, closed) =
            (svg.matches(&format!("<{element}")).count(), svg.matches(&format!("</{element}>")).count());
        assert!(opened >= closed && (element == "g" || closed > 0), "<{element}>");
    }
    assert_eq!(svg.matches('<').count(), svg.matches('>').count());

    let words = format!("generate --json --strict --temperature 0 --max-tokens 8 --model {}", rust_tiny());
    let answer =
        |more: &[&str]| run(&words, &[&["--prompt", "Explain E0308."], more].concat()).json()["tokens"].clone();
    assert_ne!(answer(&["--adapter", &output]), answer(&[]));
}

#[test]
fn the_lines_of_metrics_have_the_fields_of_the_contract() {
    let (rows, folder) = (data(6, 2), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    train(rows.path(), &output, "--quiet --steps 3 --max-seq-len 16").ok();
    let lines = metrics(&path);
    let step = ["step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "peak_rss_bytes"];
    let done = ["done", "interrupted", "steps", "loss", "valid_loss", "tokens", "seconds", "peak_rss_bytes"];
    let expected: [&[&str]; 6] = [&["step", "valid_loss"], &step, &step, &step, &["step", "valid_loss"], &done];
    assert_eq!(lines.iter().map(keys).collect::<Vec<_>>(), expected);
    let last = &lines[5];
    assert_eq!((&last["done"], &last["interrupted"], &last["steps"]), (&json!(true), &json!(false), &json!(3)));
    assert_eq!((&last["loss"], &last["valid_loss"]), (&lines[3]["loss"], &lines[4]["valid_loss"]));
    let tokens: u64 = lines[1..4].iter().map(|line| line["tokens"].as_u64().unwrap()).sum();
    assert_eq!(last["tokens"], tokens);
}

#[test]
fn a_seed_decides_the_adapter_to_the_last_byte() {
    let (rows, folder) = (data(8, 1), tempfile::tempdir().unwrap());
    let adapter = |name: &str, more: &str| {
        let (output, path) = inside(&folder, name);
        train(rows.path(), &output, &format!("--quiet --steps 4 --dropout 0.1 --max-seq-len 24 {more}")).ok();
        fs::read(path.join("adapter_model.safetensors")).unwrap()
    };
    let first = adapter("a", "--seed 7");
    assert!(first == adapter("b", "--seed 7"), "two processes");
    assert!(first == adapter("a", "--seed 7"), "into the same folder");
    assert!(first != adapter("c", "--seed 8"));
}

#[test]
fn an_adapter_is_continued_where_it_stood() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    let (first, first_path) = inside(&folder, "first");
    let (second, second_path) = inside(&folder, "second");
    train(rows.path(), &first, "--quiet --steps 6 --rank 4 --learning-rate 1e-2 --max-seq-len 32").ok();
    let words = format!("--steps 2 --max-seq-len 32 --init-adapter {first}");
    train(rows.path(), &second, &words).ok();
    assert_eq!(valid_losses(&second_path)[0], *valid_losses(&first_path).last().unwrap());
    assert_eq!(json_of(&second_path.join("adapter_config.json"))["r"], 4);
    let config = folder.path().join("c.toml");
    fs::write(&config, "rank = 8\n").unwrap();
    let error = train(rows.path(), &second, &format!("{words} --config {}", config.display())).error();
    assert!(error.contains("--init-adapter") && error.contains("rank"), "{error}");
    let error = train(rows.path(), &second, "--init-adapter /nowhere").error();
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn a_dry_run_shows_the_plan_and_writes_nothing() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    let plan = train(rows.path(), &output, "--dry-run --json --epochs 2 --batch-size 3").json();
    let fields = [
        "steps",
        "train_examples",
        "valid_examples",
        "weighted_tokens",
        "trainable_parameters",
        "modules",
        "backend",
        "memory",
    ];
    assert_eq!(keys(&plan), fields);
    assert_eq!((&plan["steps"], &plan["train_examples"], &plan["modules"]), (&json!(6), &json!(8), &json!(6)));
    let human = train(rows.path(), &output, "--dry-run").ok();
    assert!(human.out.contains("2 steps on 8 examples"), "{}", human.out);
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_trained_is_an_error_and_writes_nothing() {
    let (rows, folder) = (data(4, 1), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    let error = |more: &str| train(rows.path(), &output, more).error();
    let told = error("--target qproj");
    assert!(told.contains("`qproj`") && told.contains("down_proj, gate_proj, k_proj"), "{told}");
    let told = error("--target *_proj");
    assert!(told.contains("`*_proj`") && told.contains("q_proj"), "{told}");
    let told = error("--batch-size 5");
    assert!(told.contains("train.jsonl") && told.contains("4 rows") && told.contains("--batch-size"), "{told}");
    let told = error("--batch-size 5 --dry-run");
    assert!(told.contains("--batch-size"), "{told}");
    assert!(train(Path::new("/nowhere"), &output, "").error().contains("/nowhere: there is no train.jsonl"));
    assert!(!path.exists());
    let file = text(&rows.path().join("valid.jsonl"));
    let told = train(rows.path(), &file, "--steps 1").error();
    assert!(told.contains(&file), "{told}");
    fs::remove_file(rows.path().join("valid.jsonl")).unwrap();
    let ran = train(rows.path(), &output, "--steps 1 --max-seq-len 16 --eval-every 1").ok();
    assert!(ran.err.contains("no valid.jsonl"), "{}", ran.err);
}

#[test]
fn a_run_that_fails_keeps_what_it_trained_and_is_not_done() {
    let (rows, folder) = (data(4, 1), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    let error = train(
        rows.path(),
        &output,
        "--steps 50 --max-seq-len 16 --learning-rate 1000 --rank 64 --alpha 1e30 --schedule constant",
    )
    .error();
    assert!(error.contains("not finite"), "{error}");
    assert!(metrics(&path).iter().all(|line| line["done"].is_null()));
    assert_eq!(
        path.join("adapter_model.safetensors").exists(),
        metrics(&path).iter().any(|line| !line["loss"].is_null())
    );
}

/// A run too long to end by itself, once it has taken a step.
fn long_run(rows: &Path, output: &str) -> Child {
    let words = format!("train --model {} --data {} --output {output}", golden("qwen2-tiny"), rows.display());
    let child = binary()
        .args(words.split(' '))
        .args(["--steps", "1000000", "--max-seq-len", "16", "--quiet"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (begun, metrics) = (Instant::now(), Path::new(output).join("metrics.jsonl"));
    while fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no step was taken");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn a_signal_ends_the_run_after_saving_it() {
    let rows = data(4, 1);
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let folder = tempfile::tempdir().unwrap();
        let (output, path) = inside(&folder, "adapter");
        let child = long_run(rows.path(), &output);
        // Meanwhile nobody else trains into the folder, and the run does not notice that somebody tried.
        let error = train(rows.path(), &output, "--quiet --steps 1").error();
        assert!(error.contains(&output) && error.contains("another run"), "{error}");
        assert!(Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap().success());
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(status), ""));
        let lines = metrics(&path);
        let last = lines.last().unwrap();
        assert_eq!((&last["done"], &last["interrupted"]), (&json!(true), &json!(true)));
        let steps = lines.iter().filter(|line| line["grad_norm"].is_number()).count();
        assert!(steps > 0 && last["steps"] == steps, "{last}");
        assert!(path.join("loss.svg").exists());
        run(&format!("generate --max-tokens 1 --tokens 5 --model {}", golden("qwen2-tiny")), &["--adapter", &output])
            .ok();
    }
}
