//! `doctor`, and what a remembered verdict does to other verbs.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Ran, binary, run, rust_tiny};

fn run_with(cache: &TempDir, words: &str) -> Ran {
    let output = binary().args(words.split_whitespace()).env("FIREBRICK_CACHE", cache.path()).output().unwrap();
    Ran {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The one verdict in a cache folder.
fn verdict(cache: &TempDir) -> PathBuf {
    let mut files: Vec<_> =
        fs::read_dir(cache.path().join("doctor")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    files.remove(0)
}

#[test]
fn a_sound_device_passes_every_check_and_is_remembered() {
    let cache = tempfile::tempdir().unwrap();
    let facts = run_with(&cache, "doctor --backend flex --json").json();
    assert_eq!(facts["passed"], true);
    let flex = &facts["devices"][0];
    assert_eq!(flex["backend"], "flex");
    let findings = flex["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["outcome"] == "passed" && finding["error"].is_f64()), "{flex}");
    for check in ["rms_norm", "cached decode", "gradients over 2048 tokens", "bf16 weights", "determinism"] {
        assert!(findings.iter().any(|finding| finding["check"] == check), "{check}");
    }
    let known: Vec<_> = facts["backends"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert!(known.contains(&"metal") && known.contains(&"cuda"), "{known:?}");

    let written: Value = serde_json::from_slice(&fs::read(verdict(&cache)).unwrap()).unwrap();
    assert_eq!(&written, flex);
    let listed = run_with(&cache, "doctor --list --backend flex").ok().out;
    assert!(listed.contains("passed when it was last examined") && listed.contains("not built in"), "{listed}");
}

#[test]
fn a_device_that_failed_is_named_or_with_strict_refused() {
    let cache = tempfile::tempdir().unwrap();
    run_with(&cache, "doctor --backend flex").ok();
    let file = verdict(&cache);
    let text = fs::read_to_string(&file).unwrap();
    let mut report: Value = serde_json::from_str(&text).unwrap();
    let cached =
        report["findings"].as_array_mut().unwrap().iter_mut().find(|finding| finding["check"] == "cached decode");
    let cached = cached.unwrap().as_object_mut().unwrap();
    cached.remove("error");
    cached.insert("outcome".into(), "failed".into());
    cached.insert("problem".into(), "off".into());
    fs::write(&file, report.to_string()).unwrap();

    let generate = format!("generate --backend flex --model {} --prompt Rust --max-tokens 2", rust_tiny());
    let ran = run_with(&cache, &generate).ok();
    let warnings: Vec<_> = ran.err.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("failed cached decode"), "{}", ran.err);
    let refused = run_with(&cache, &format!("{generate} --strict")).error();
    assert!(refused.contains("failed cached decode") && refused.contains("doctor --backend flex"), "{refused}");
    let listed = run_with(&cache, "doctor --list --backend flex");
    assert!(listed.status == 1 && listed.out.contains("failed: cached decode"), "{}", listed.out);

    // A verdict of another driver, or a damaged one, is none.
    for other in [text.replace("burn-flex 0.21.0", "burn-flex 0.20.0").replace("passed", "failed"), "{".into()] {
        fs::write(&file, other).unwrap();
        let ran = run_with(&cache, &generate).ok();
        assert!(!ran.err.contains("warning"), "{}", ran.err);
    }
}

#[test]
fn a_backend_that_is_not_built_in_names_its_feature() {
    let error = run("doctor --backend candle-cuda", &[]).misuse();
    assert!(error.contains("`candle-cuda` is not built in; build with `--features candle-cuda`"), "{error}");
    let error = run("generate --backend tpu --model x --prompt y", &[]).misuse();
    assert!(error.contains("unknown backend `tpu`; the names are auto cuda metal vulkan wgpu"), "{error}");
}
