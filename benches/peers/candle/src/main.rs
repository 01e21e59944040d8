//! candle's side of the benchmark matrix: answers the protocol of `benches/peers/protocol.py`, on the CPU.

mod models;
mod ops;
mod work;

use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use serde_json::{Value, json};
use work::{Fail, INPUTS, Output, Work, size};

/// candle, gemm and rayon read the number of threads from one variable: starts this process anew with it set.
#[cfg(unix)]
fn set_threads() {
    use std::os::unix::process::CommandExt;
    let wanted = std::env::var("BENCH_THREADS").unwrap_or("2".into());
    if std::env::var("RAYON_NUM_THREADS").as_ref() != Ok(&wanted) {
        let own = std::env::current_exe().expect("this program has a path");
        panic!("{}", std::process::Command::new(own).env("RAYON_NUM_THREADS", wanted).exec());
    }
}

#[cfg(not(unix))]
fn set_threads() {}

/// The most memory this process had since `forget_peak`; only Linux says.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn forget_peak() {
    // Where this is refused, the peak is that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn prepare(request: &Value) -> Result<Work, Fail> {
    let name = request["workload"].as_str().ok_or("the workload has no name")?;
    match name {
        "prefill" => models::prefill(request),
        "generate" => models::generate(request),
        "embed" => models::embed(request),
        "lora_step" => Err("candle has no LoRA, and its Qwen2 takes no adapter".into()),
        _ => ops::prepare(name, request),
    }
}

/// Seconds of `calls` calls, and what the last returned.
fn run(work: &mut Work, calls: usize, first: usize) -> Result<(f64, Option<Output>), Fail> {
    let mut result = None;
    let begun = Instant::now();
    for number in first..first + calls {
        drop(result.take()); // before the next is made
        result = Some((work.call)(number % INPUTS, &mut work.parts)?);
    }
    Ok((begun.elapsed().as_secs_f64(), result))
}

fn answer(line: &str, prepared: &mut Option<Work>) -> Result<Value, Fail> {
    let request: Value = serde_json::from_str(line)?;
    if !request["prepare"].is_null() {
        drop(prepared.take());
        forget_peak();
        let work = prepared.insert(prepare(&request["prepare"])?);
        let (seconds, result) = run(work, 1, 0)?;
        let values = result.ok_or("no call was made")?.values()?;
        return Ok(json!({"ready": true, "cold_seconds": seconds, "values": values}));
    }
    if !request["release"].is_null() {
        let peak = peak_rss_bytes();
        drop(prepared.take());
        return Ok(json!({"released": true, "peak_rss_bytes": peak}));
    }
    let work = prepared.as_mut().ok_or("nothing is prepared")?;
    let (seconds, result) = run(work, size(&request, "calls")?, size(&request, "input")?)?;
    let begun = Instant::now();
    let values = result.ok_or("no calls were asked for")?.values()?;
    let mut answer = json!({"seconds": seconds, "after": begun.elapsed().as_secs_f64(), "values": values});
    if !work.parts.is_empty() {
        answer["parts"] = json!(work.parts);
    }
    Ok(answer)
}

fn main() -> Result<(), Fail> {
    set_threads();
    let mut out = std::io::stdout().lock();
    let mut say = |answer: Value| writeln!(out, "{answer}").and_then(|()| out.flush());
    let versions = json!({"candle-core": "0.10.2", "candle-nn": "0.10.2", "candle-transformers": "0.10.2"});
    say(json!({"peer": "candle-peer", "versions": versions, "device": "cpu"}))?;
    let mut prepared = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        // A panic of the library is an answer too.
        let answered = catch_unwind(AssertUnwindSafe(|| answer(&line, &mut prepared)));
        let why = match answered {
            Ok(Ok(answer)) => {
                say(answer)?;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "candle panicked".into(),
        };
        eprintln!("{why}");
        prepared = None;
        say(json!({"unsupported": why.lines().next().unwrap_or_default()}))?;
    }
    Ok(())
}
