//! Generation with a model of a real size stays within what its weights and its cache need.

use firebrick::core::checkpoint::Checkpoint;
use serde_json::Value;

use super::python::{needed, run};

/// What generation may take besides the weights and the cache, in bytes.
const ROOM: u64 = 300_000_000;
/// More than a chunk of the prefill, whose activations are the most there is at a time.
const PROMPT_TOKENS: usize = 600;
const MAX_TOKENS: usize = 16;

/// Runs a program and prints the kernel's peak of its resident memory, in kilobytes, behind what it prints.
const MEASURE: &str = "
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
";

#[test]
#[ignore = "needs Python, and the random 0.5B model"]
fn generation_stays_within_weights_cache_and_300_mb() {
    let folder = needed("FIREBRICK_QWEN05B");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let size = |key: &str| checkpoint.config()[key].as_u64().unwrap();
    let head_dim = size("hidden_size") / size("num_attention_heads");
    let row = size("num_hidden_layers") * 2 * size("num_key_value_heads") * head_dim * 4;
    let (weights, cache) = (checkpoint.total_bytes(), row * (PROMPT_TOKENS + MAX_TOKENS) as u64);

    let prompt: Vec<String> = (1..=PROMPT_TOKENS).map(|id| id.to_string()).collect();
    let (prompt, max_tokens) = (prompt.join(","), MAX_TOKENS.to_string());
    let generate = ["--temperature", "0", "--json", "--quiet", "--tokens", &prompt, "--max-tokens", &max_tokens];
    let program = ["-c", MEASURE, env!("CARGO_BIN_EXE_firebrick"), "generate", "--model", folder.to_str().unwrap()];
    let printed = String::from_utf8(run(program.into_iter().chain(generate))).unwrap();
    let (answer, kilobytes) = printed.trim_end().rsplit_once('\n').unwrap();
    let answer: Value = serde_json::from_str(answer).unwrap();
    assert_eq!(answer["tokens"].as_array().unwrap().len(), MAX_TOKENS);
    assert_eq!(answer["dtype"], "f16", "the weights are not in memory as they are stored");

    let reported = answer["peak_rss_bytes"].as_u64().unwrap();
    // Linux counts in kilobytes, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let measured = kilobytes.parse::<u64>().unwrap() * unit;
    println!("weights {weights} + cache {cache} bytes; peak: reported {reported}, by the kernel {measured}");
    for (by, peak) in [("itself", reported), ("the kernel", measured)] {
        assert!(peak <= weights + cache + ROOM, "by {by}: {peak} bytes are {} over", peak - weights - cache - ROOM);
        assert!(peak > weights, "by {by}: {peak} bytes cannot be right, the weights alone are {weights}");
    }
}
