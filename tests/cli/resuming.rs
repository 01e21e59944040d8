//! `train --resume`: runs that were killed, stopped or damaged go on to the end that they would have had.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::{Ran, binary, data, golden, inside, metrics, run, text};

const INTERVAL: u64 = 20;

fn words(rows: &Path, output: &str, more: &str) -> String {
    let model = golden("qwen2-tiny");
    let data = rows.display();
    format!(
        "train --quiet --model {model} --data {data} --output {output} --max-seq-len 16 --batch-size 2 --dropout 0.1 {more}"
    )
}

fn train(rows: &Path, output: &str, more: &str) -> Ran {
    run(&words(rows, output, more), &[])
}

fn spawn(words: &str) -> Child {
    binary().args(words.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The lines of the steps, without what depends on the clock.
fn told(path: &Path) -> Vec<String> {
    let lines = metrics(path).into_iter().filter(|line| line["done"].is_null());
    lines
        .map(|mut line| {
            let facts = line.as_object_mut().unwrap();
            facts.remove("tokens_per_second");
            facts.remove("peak_rss_bytes");
            Value::Object(facts.clone()).to_string()
        })
        .collect()
}

fn checkpoints(path: &Path) -> Vec<u64> {
    let names = path.read_dir().into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

fn adapter(path: &Path) -> Vec<u8> {
    fs::read(path.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn two_hundred_kills_lose_no_more_than_the_interval_and_change_nothing() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    let more = format!("--steps 600 --eval-every 50 --checkpoint-every {INTERVAL}");
    let (whole, whole_path) = inside(&folder, "whole");
    train(rows.path(), &whole, &more).ok();
    let mut random = 12345u64;
    let (mut kills, mut runs, mut lost) = (0, 0, 0);
    while kills < 200 {
        let (output, path) = inside(&folder, &format!("killed-{runs}"));
        let mut newest = 0;
        loop {
            let mut child = spawn(&words(rows.path(), &output, &format!("{more} --resume")));
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let begun = Instant::now();
            let life = Duration::from_millis((random >> 33) % 250);
            while begun.elapsed() < life && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let ended = child.try_wait().unwrap();
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{runs}: after {kills} kills");
            if let Some(status) = ended {
                assert!(status.success());
                break;
            }
            kills += 1;
            let last = checkpoints(&path).last().copied().unwrap_or(0);
            assert!(last >= newest, "step {last} after {newest}");
            newest = last;
            let steps = fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default();
            let steps = steps.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64());
            let gone = steps.max().unwrap_or(0).saturating_sub(newest);
            // The checkpoint of a step is written after the line of the step.
            assert!(gone <= INTERVAL, "{gone} steps would be lost");
            lost = lost.max(gone);
        }
        assert!(adapter(&path) == adapter(&whole_path), "run {runs}: the adapter differs");
        assert_eq!(told(&path), told(&whole_path), "run {runs}");
        runs += 1;
    }
    println!(
        "{kills} kills in {runs} runs: each ended like the one that was not killed; at most {lost} steps were made twice"
    );
}

#[test]
fn an_interrupted_run_is_continued_and_not_overwritten() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    let more = "--steps 100000 --schedule constant";
    let (output, path) = inside(&folder, "adapter");
    let child = spawn(&words(rows.path(), &output, more));
    let begun = Instant::now();
    while fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default().lines().count() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no step was taken");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    let step = *checkpoints(&path).last().unwrap();
    assert_eq!(metrics(&path).last().unwrap()["steps"], step);
    // Begun anew it would be lost.
    let error = train(rows.path(), &output, more).error();
    assert!(error.contains(&format!("step {step} of 100000")) && error.contains("--resume"), "{error}");
    let error = train(rows.path(), &output, &format!("{more} --resume --seed 4 --rank 2")).error();
    assert!(error.contains("seed was 0 and is now 4") && error.contains("r was 8 and is now 2"), "{error}");
    let end = step + 7;
    let run = run(
        &words(rows.path(), &output, &format!("--steps {end} --schedule constant --resume")).replace("--quiet", ""),
        &[],
    )
    .ok();
    assert!(run.err.contains(&format!("continuing after step {step} of {end}")), "{}", run.err);
    assert!(run.err.contains("100000 steps before"), "{}", run.err);
    let (whole, whole_path) = inside(&folder, "whole");
    train(rows.path(), &whole, &format!("--steps {end} --schedule constant")).ok();
    assert!(adapter(&path) == adapter(&whole_path));
    let steps = |path: &Path| told(path).into_iter().filter(|line| !line.contains("valid_loss")).collect::<Vec<_>>();
    assert_eq!(steps(&path), steps(&whole_path));
    // A run that is done may be made again.
    train(rows.path(), &output, "--steps 2").ok();
    assert_eq!(checkpoints(&path), [2]);
}

#[test]
fn a_long_step_is_given_up_within_ten_seconds() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    let child = spawn(&words(rows.path(), &output, "--steps 2 --gradient-accumulation 1000000"));
    let begun = Instant::now();
    while fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing was validated");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    let told = Instant::now();
    assert!(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    assert_eq!(metrics(&path).last().unwrap()["steps"], 0);
}

#[test]
fn checkpoints_are_made_and_kept_as_asked() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    for (more, expected) in [
        ("--steps 10 --checkpoint-every 3 --keep-last 9", vec![3, 6, 9, 10]),
        ("--steps 10 --checkpoint-every 3 --keep-last 1", vec![10]),
        ("--steps 10 --checkpoint-every 3", vec![9, 10]),
        ("--steps 10", vec![10]),
    ] {
        let (output, path) = inside(&folder, &more.replace(' ', "_"));
        train(rows.path(), &output, more).ok();
        assert_eq!(checkpoints(&path), expected, "{more}");
        // Each is an adapter folder of its own.
        let last = text(&path.join("step-10"));
        run(&format!("generate --max-tokens 1 --tokens 5 --model {} --adapter {last}", golden("qwen2-tiny")), &[]).ok();
        assert!(adapter(&path) == adapter(&path.join("step-10")));
    }
}

#[test]
fn what_is_damaged_is_told_and_passed_over() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    let more = "--steps 10 --checkpoint-every 3 --eval-every 5";
    train(rows.path(), &output, more).ok();
    let expected = (adapter(&path), told(&path));
    fs::write(path.join("step-10/optimizer.safetensors"), "x").unwrap();
    fs::create_dir(path.join("step-12.tmp")).unwrap();
    let ran = run(&words(rows.path(), &output, &format!("{more} --resume")).replace("--quiet", ""), &[]).ok();
    assert!(
        ran.err.contains("warning: a damaged checkpoint is passed over") && ran.err.contains("step-10/optimizer"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("continuing after step 9 of 10"), "{}", ran.err);
    assert_eq!((adapter(&path), told(&path)), expected);
    assert!(path.join("step-10.damaged").is_dir() && !path.join("step-12.tmp").exists());
    // With nothing there it begins.
    let (output, path) = inside(&folder, "new");
    train(rows.path(), &output, &format!("{more} --resume")).ok();
    assert_eq!((adapter(&path), told(&path)), expected);
}

#[test]
fn steps_that_are_not_finite_are_passed_over_as_often_as_asked() {
    let (rows, folder) = (data(4, 1), tempfile::tempdir().unwrap());
    let wild = "--steps 50 --learning-rate 1000 --rank 64 --alpha 1e30 --schedule constant --weight-decay 0";
    for allowed in [0, 2] {
        let (output, path) = inside(&folder, &format!("{allowed}"));
        let error = train(rows.path(), &output, &format!("{wild} --max-skipped-steps {allowed}")).error();
        assert!(error.contains("not finite") && error.contains("train.jsonl"), "{error}");
        assert_eq!(metrics(&path).iter().filter(|line| line["skipped"].is_string()).count(), allowed);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_no_end() {
    let (rows, folder) = (data(8, 3), tempfile::tempdir().unwrap());
    let (output, path) = inside(&folder, "adapter");
    let more = |steps: usize| format!("--schedule constant --steps {steps} --resume");
    train(rows.path(), &output, &more(3)).ok();
    // The optimizer's state is the largest file of a checkpoint.
    let limit = fs::metadata(path.join("step-3/optimizer.safetensors")).unwrap().len() - 1;
    let mut limited = std::process::Command::new("prlimit");
    limited.arg(format!("--fsize={limit}")).arg(binary().get_program());
    let ran = limited.args(words(rows.path(), &output, &more(10)).split_whitespace()).output().unwrap();
    let error = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{error}");
    assert!(error.starts_with("error: ") && error.contains("optimizer.safetensors"), "{error}");
    assert_eq!(checkpoints(&path), [3]);
    train(rows.path(), &output, &more(10)).ok();
    let (whole, whole_path) = inside(&folder, "whole");
    train(rows.path(), &whole, &more(10)).ok();
    assert!(adapter(&path) == adapter(&whole_path));
}
