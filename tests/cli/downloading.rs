//! `--model org/name`: downloaded once, then from the cache; against a hub on this machine.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::command::{binary, data, rust_tiny, text};
use crate::fake_hub::{COMMIT, FakeHub, REPO, Reply};

/// The examples' model on a hub.
fn hub() -> FakeHub {
    let names =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    FakeHub::new(names.map(|name| (name, std::fs::read(Path::new(&rust_tiny()).join(name)).unwrap())))
}

fn on(hub: &FakeHub, cache: &Path, words: &str) -> Command {
    let mut command = binary();
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint).env("HF_HUB_CACHE", cache);
    command.env("HF_TOKEN", "hf_verysecrettoken").args(words.split_whitespace()).stdin(Stdio::null());
    command
}

fn generate(hub: &FakeHub, cache: &Path) -> Command {
    on(hub, cache, &format!("generate --model {REPO} --prompt Ownership --max-tokens 5 --temperature 0 --json"))
}

#[track_caller]
fn tokens(output: Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["tokens"].clone()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_repo_id_is_downloaded_once_and_says_the_same_as_the_folder() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let first = generate(&hub, cache.path()).output().unwrap();
    assert_eq!(stderr(&first), format!("downloading {REPO} at {} from 127.0.0.1\n", &COMMIT[..8]));
    let connections = hub.connections();
    let second = generate(&hub, cache.path()).output().unwrap();
    assert_eq!(stderr(&second), "");
    let offline = generate(&hub, cache.path()).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(hub.connections(), connections);
    let words = "--prompt Ownership --max-tokens 5 --temperature 0 --json".split(' ');
    let local = binary().args(["generate", "--model", &rust_tiny()]).args(words).output().unwrap();
    let expected = tokens(local);
    for output in [first, second, offline] {
        assert_eq!(tokens(output), expected);
    }
    let quiet = tempfile::tempdir().unwrap();
    let quiet = generate(&hub, quiet.path()).arg("--quiet").output().unwrap();
    assert_eq!((stderr(&quiet).as_str(), tokens(quiet)), ("", expected));
}

#[test]
fn processes_at_once_download_once() {
    for _ in 0..5 {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        let start = |_| {
            let mut command = generate(&hub, cache.path());
            command.args(["--threads", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..3).map(start).collect();
        let said: Vec<Value> = children.into_iter().map(|child| tokens(child.wait_with_output().unwrap())).collect();
        assert!(said.iter().all(|tokens| *tokens == said[0]));
        for name in ["model.safetensors", "tokenizer.json", "config.json"] {
            assert_eq!(hub.sent(name), 1, "{name}");
        }
    }
}

#[test]
fn failures_are_one_line_without_the_token() {
    let cache = tempfile::tempdir().unwrap();
    for status in [401, 403, 404, 418] {
        let hub = hub();
        hub.change(move |_, _| Reply::new(status, "hf_verysecrettoken"));
        let output = generate(&hub, cache.path()).arg("-v").output().unwrap();
        let error = stderr(&output);
        assert_eq!((output.status.code(), output.stdout.len(), error.lines().count()), (Some(1), 0, 1), "{error}");
        assert!(error.starts_with("error: org/tiny: ") && !error.contains("verysecret"), "{error}");
    }
    let hub = hub();
    let output = generate(&hub, cache.path()).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let error = stderr(&output);
    assert_eq!((output.status.code(), error.lines().count(), hub.connections()), (Some(1), 1, 0), "{error}");
    assert!(error.contains(&text(cache.path())) && error.contains("config.json"), "{error}");
    let output = generate(&hub, cache.path())
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HOME")
        .env_remove("XDG_CACHE_HOME")
        .env_remove("HOME")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: org/tiny: no Hugging Face cache"), "{}", stderr(&output));
}

#[test]
fn a_signal_ends_a_download_which_the_next_run_goes_on_with() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.change(
        |request, reply| {
            if request.is_cdn { reply.cut(1_000_000).silent(Duration::from_secs(60)) } else { reply }
        },
    );
    let mut child = generate(&hub, cache.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let arrived = || {
        let blobs = cache.path().join("models--org--tiny/blobs").read_dir().ok()?;
        let incomplete =
            blobs.flatten().find(|entry| entry.path().extension().is_some_and(|ending| ending == "incomplete"))?;
        incomplete.metadata().ok().map(|metadata| metadata.len())
    };
    let begun = std::time::Instant::now();
    while arrived().unwrap_or(0) < 500_000 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing arrives");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let kept = arrived().unwrap() as usize;
    hub.change(move |request, reply| {
        assert!(!request.is_cdn || request.start() == kept, "it goes on from {kept}, not {}", request.start());
        reply
    });
    tokens(generate(&hub, cache.path()).output().unwrap());
}

#[test]
fn a_full_disk_is_named_and_what_arrived_is_kept() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let command = generate(&hub, cache.path());
    // No file may have more than a few thousand blocks; the signal for it is ignored, as for a disk that is full there is none.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 4000; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let output = limited.output().unwrap();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let last = error.lines().last().unwrap();
    assert!(last.starts_with(&format!("error: {}", text(cache.path()))) && last.contains(".incomplete: "), "{error}");
    tokens(generate(&hub, cache.path()).output().unwrap());
    let starts: Vec<usize> =
        hub.requests().iter().filter(|request| request.is_cdn).map(|request| request.start()).collect();
    assert!(starts.len() == 2 && starts[1] > 1_000_000, "{starts:?}");
}

#[test]
fn an_adapter_knows_the_commit_of_its_base() {
    let (hub, cache, data, out) = (hub(), tempfile::tempdir().unwrap(), data(4, 2), tempfile::tempdir().unwrap());
    let adapter = out.path().join("adapter");
    let words = format!("train --model {REPO}@main --steps 1 --rank 2 --batch-size 1 --json --quiet");
    let mut command = on(&hub, cache.path(), &words);
    command.arg("--data").arg(data.path()).arg("--output").arg(&adapter);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let config: Value = serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&REPO.into(), &COMMIT.into()));
}
