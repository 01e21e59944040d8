//! Peers: processes that answer requests in lines of JSON (`benches/peers`), which do the same work on the same inputs and weights.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use super::measure::{Runner, Sample};
use super::record::WAITING;

/// The peers of `serve.py`, and candle, which is a binary of its own.
const PYTHON: [&str; 6] = ["pytorch", "peft", "sentence-transformers", "onnxruntime", "mlx", LLAMA];
const LLAMA: &str = "llama.cpp";
const CANDLE: &str = "candle-peer";

/// What a peer says when it starts.
#[derive(Debug, Deserialize)]
struct Hello {
    peer: String,
    #[serde(default)]
    versions: BTreeMap<String, String>,
    #[serde(default)]
    device: String,
}

/// One peer.
pub struct Peer {
    /// Its name in records.
    pub name: String,
    /// Of its library, and of what that computes with.
    pub versions: BTreeMap<String, String>,
    /// `cpu`, `cuda`, ….
    pub device: String,
    /// As [`Record::settings`](super::record::Record::settings).
    pub settings: BTreeMap<String, String>,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    last: Sample,
}

/// A peer that could not be started, and why.
#[derive(Clone, Debug)]
pub struct Absent {
    /// Its name in records.
    pub name: String,
    /// Why, in a line.
    pub reason: String,
}

/// What `setup.sh` and `models.py` made.
#[derive(Debug)]
pub struct Setup {
    python: PathBuf,
    folder: PathBuf,
    /// The peers asked for, as [`is_wanted`] has it.
    wanted: Vec<String>,
    candle: Result<PathBuf, String>,
    /// The folders of models that all sides load.
    pub models: PathBuf,
}

/// Whether one of these texts is in a peer's name; all peers are wanted where there is none.
fn is_wanted(name: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()))
}

/// Runs a command to its end; the last line it prints.
fn last_line(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|problem| format!("{shown}: {problem}"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// Installs the peers and makes the models, once; `folder` is `benches/peers` of a checkout, `cache` where it all goes. Of those that are
/// compiled here only those are whose names contain one of `wanted`, all if none is wanted: llama.cpp takes half an hour.
///
/// # Errors
/// If Python cannot be set up. A candle that does not build is an absent peer.
pub fn set_up(folder: &Path, cache: &Path, wanted: &[String]) -> Result<Setup, String> {
    let script = folder.join("setup.sh");
    if !script.exists() {
        return Err(format!("{} is not there: run this in a checkout of Firebrick", script.display()));
    }
    let mut command = Command::new(&script);
    command.arg(cache.join("peers")).env("FIREBRICK_LLAMA_CPP", if is_wanted(LLAMA, wanted) { "1" } else { "0" });
    let python = PathBuf::from(last_line(&mut command)?);
    let models = cache.join("bench-models");
    last_line(Command::new(&python).arg(folder.join("models.py")).arg(&models))?;
    let target = cache.join("target-candle-peer");
    let build = || {
        last_line(
            Command::new("cargo")
                .args(["build", "--release", "--quiet", "--locked", "--manifest-path"])
                .arg(folder.join("candle/Cargo.toml"))
                .env("CARGO_TARGET_DIR", &target),
        )
    };
    let build = if is_wanted(CANDLE, wanted) { build() } else { Err("was not asked for".to_owned()) };
    let candle = build.map(|_| target.join("release/candle-peer"));
    Ok(Setup { python, folder: folder.to_owned(), wanted: wanted.to_vec(), candle, models })
}

impl Setup {
    /// Starts those that were asked for. What they say besides their answers goes to `NAME.log` in the folder `logs`.
    pub fn start(&self, threads: usize, logs: &Path) -> (Vec<Peer>, Vec<Absent>) {
        let (mut peers, mut absent) = (Vec::new(), Vec::new());
        for name in PYTHON.into_iter().chain([CANDLE]) {
            if !is_wanted(name, &self.wanted) {
                continue;
            }
            let command = match (&self.candle, name) {
                (Ok(binary), CANDLE) => Ok(Command::new(binary)),
                (Err(reason), CANDLE) => Err(reason.clone()),
                _ => {
                    let mut command = Command::new(&self.python);
                    command.arg(self.folder.join("serve.py")).arg(name);
                    Ok(command)
                }
            };
            let logged = |mut command: Command| {
                let log =
                    std::fs::File::create(logs.join(format!("{name}.log"))).map_err(|problem| problem.to_string())?;
                command.stderr(log);
                Ok(command)
            };
            match command.and_then(logged).and_then(|command| Peer::start(command, threads)) {
                Ok(peer) => peers.push(peer),
                Err(reason) => absent.push(Absent { name: name.to_owned(), reason }),
            }
        }
        (peers, absent)
    }
}

impl Peer {
    fn start(mut command: Command, threads: usize) -> Result<Self, String> {
        let threads = threads.to_string();
        for name in ["BENCH_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            command.env(name, &threads);
        }
        // How its threads wait is left to its libraries, as whoever runs them would: told to sleep, those of llama.cpp lose half of their time.
        let waiting = std::env::var(WAITING).unwrap_or_else(|_| "default".to_owned());
        let settings = BTreeMap::from([(WAITING.to_owned(), waiting)]);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|problem| format!("{command:?}: {problem}"))?;
        let (Some(requests), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("no pipe to the process".into());
        };
        let mut answers = BufReader::new(answers);
        let hello: Hello = read(&mut answers)?;
        let Hello { peer: name, versions, device } = hello;
        Ok(Self { name, versions, device, settings, process, requests, answers, last: Sample::default() })
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, request: &Value) -> Result<T, String> {
        writeln!(self.requests, "{request}")
            .and_then(|()| self.requests.flush())
            .map_err(|problem| problem.to_string())?;
        read(&mut self.answers)
    }

    /// Puts a workload's inputs and weights in its memory; the seconds of its first call, if it says.
    ///
    /// # Errors
    /// Why it cannot do this workload.
    pub fn prepare(&mut self, workload: &Value) -> Result<Option<f64>, String> {
        let answer: Value = self.ask(&json!({"prepare": workload}))?;
        match answer["unsupported"].as_str() {
            Some(reason) => Err(reason.to_owned()),
            None if answer["ready"] == true => Ok(answer["cold_seconds"].as_f64()),
            None => Err(format!("it answered {answer}")),
        }
    }

    /// Lets go of what it prepared; the most memory it has had so far, in bytes.
    pub fn release(&mut self) -> Option<u64> {
        let answer: Value = self.ask(&json!({"release": true})).ok()?;
        answer["peak_rss_bytes"].as_u64()
    }
}

fn read<T: serde::de::DeserializeOwned>(answers: &mut impl BufRead) -> Result<T, String> {
    let mut line = String::new();
    answers.read_line(&mut line).map_err(|problem| problem.to_string())?;
    if line.is_empty() {
        return Err("the process ended; its last words are in its log".into());
    }
    serde_json::from_str(&line).map_err(|problem| format!("{problem} in {}", line.trim_end()))
}

#[derive(Deserialize)]
struct Answer {
    seconds: f64,
    after: f64,
    values: Vec<f64>,
    #[serde(default)]
    parts: BTreeMap<String, f64>,
}

impl Runner for &mut Peer {
    fn sample(&mut self, calls: usize, input: usize) -> Result<Sample, String> {
        if calls > 0 {
            let answer: Answer = self.ask(&json!({"calls": calls, "input": input}))?;
            let Answer { seconds, after, values, parts } = answer;
            self.last = Sample { seconds, after, values, parts };
        }
        Ok(self.last.clone())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It would end by itself at the end of its input, but not if it is stuck.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A peer in the shell, which answers as it is told to.
    fn peer(prepared: &str, answered: &str) -> Result<Peer, String> {
        let script = format!(
            r#"echo '{{"peer": "sh", "versions": {{"sh": "1"}}, "device": "cpu"}}'
            while read -r line; do case "$line" in
                *prepare*) echo '{prepared}';; *release*) echo '{{"released": true, "peak_rss_bytes": 7}}';; *) {answered};;
            esac; done"#
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        Peer::start(command, 2)
    }

    #[test]
    fn a_peer_prepares_answers_and_releases() {
        let answer = r#"echo '{"seconds": 0.5, "after": 0.1, "values": [1.0, 2.0]}'"#;
        let mut peer = peer(r#"{"ready": true}"#, answer).unwrap();
        assert_eq!((peer.name.as_str(), peer.versions["sh"].as_str()), ("sh", "1"));
        peer.prepare(&json!({"workload": "softmax"})).unwrap();
        let mut runner = &mut peer;
        let sample = runner.sample(3, 0).unwrap();
        assert_eq!((sample.seconds, sample.values), (0.5, vec![1.0, 2.0]));
        assert_eq!(runner.sample(0, 0).unwrap().after, 0.1, "nothing is asked for no calls");
        assert_eq!(peer.release(), Some(7));
    }

    #[test]
    fn what_a_peer_cannot_do_it_says_and_its_end_is_noticed() {
        let mut peer = peer(r#"{"unsupported": "no such op"}"#, "exit 3").unwrap();
        assert_eq!(peer.prepare(&json!({})), Err("no such op".to_owned()));
        assert!((&mut peer).sample(1, 0).unwrap_err().contains("ended"));
    }

    #[test]
    fn a_process_that_is_no_peer_is_refused() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo hello"]);
        assert!(Peer::start(command, 1).is_err());
        assert!(Peer::start(Command::new("/no/such/peer"), 1).is_err());
    }

    #[test]
    fn a_folder_without_peers_says_where_they_are() {
        let problem = set_up(Path::new("/nowhere"), Path::new("/nowhere"), &[]).unwrap_err();
        assert!(problem.contains("checkout"), "{problem}");
    }
}
