//! Files that are small and claim to be large, or cost much to read: an error within the memory of a good run and 64 MB, at once.
//!
//! The memory is that of the address space, which is more than what is touched: a run that would allocate more ends in an abort, not in status 1.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{copy, golden, set_config, text};

/// Memory a bomb may take beyond a good file.
const EXTRA: u64 = 64 << 20;
/// Time of the processor that a bomb may take beyond a good file.
const TIME: Duration = Duration::from_millis(200);

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What is run, and in which folder.
type Make = Box<dyn Fn(&Path) -> Vec<String>>;

fn generate(model: &Path) -> Vec<String> {
    let words = ["generate", "--backend", "flex", "--threads", "1", "--tokens", "1,2", "--max-tokens", "1", "--model"];
    words.into_iter().map(str::to_owned).chain([text(model)]).collect()
}

fn embed(model: &Path) -> Vec<String> {
    let words = ["embed", "--backend", "flex", "--threads", "1", "--model"];
    words.into_iter().map(str::to_owned).chain([text(model)]).collect()
}

/// The bytes instead of the weights.
fn weights(bytes: Vec<u8>) -> Make {
    Box::new(move |folder| {
        fs::write(folder.join(WEIGHTS), &bytes).unwrap();
        generate(folder)
    })
}

/// A header, its length before it and zeros, which take no room on the disk, behind it.
fn header(json: impl AsRef<[u8]>, data: u64) -> Make {
    let bytes = [&(json.as_ref().len() as u64).to_le_bytes(), json.as_ref()].concat();
    Box::new(move |folder| {
        fs::write(folder.join(WEIGHTS), &bytes).unwrap();
        let file = File::options().write(true).open(folder.join(WEIGHTS)).unwrap();
        file.set_len(bytes.len() as u64 + data).unwrap();
        generate(folder)
    })
}

fn tensor(name: &str, shape: &str, bytes: u64) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{bytes}]}}"#)
}

/// So many empty tensors.
fn empty_tensors(count: usize) -> String {
    let tensors: Vec<String> = (0..count).map(|at| tensor(&format!("{at}"), "[0]", 0)).collect();
    format!("{{{}}}", tensors.join(","))
}

fn config(key: &'static str, value: Value) -> Make {
    Box::new(move |folder| {
        set_config(folder, key, value.clone());
        generate(folder)
    })
}

fn file(name: &'static str, bytes: impl Into<Vec<u8>>, run: fn(&Path) -> Vec<String>) -> Make {
    let bytes = bytes.into();
    Box::new(move |folder| {
        fs::write(folder.join(name), &bytes).unwrap();
        run(folder)
    })
}

/// A file of zeros that takes no room on the disk.
fn sparse(name: &'static str, length: u64) -> Make {
    Box::new(move |folder| {
        File::create(folder.join(name)).unwrap().set_len(length).unwrap();
        generate(folder)
    })
}

/// An index instead of the weights.
fn index(bytes: impl Into<Vec<u8>>) -> Make {
    let bytes = bytes.into();
    Box::new(move |folder| {
        fs::rename(folder.join(WEIGHTS), folder.join("a.safetensors")).unwrap();
        fs::write(folder.join(INDEX), &bytes).unwrap();
        generate(folder)
    })
}

/// `tokenizer.json` changed, and used.
fn tokenizer(change: impl Fn(&mut Value) + 'static) -> Make {
    Box::new(move |folder| {
        let path = folder.join("tokenizer.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
        let words = ["generate", "--backend", "flex", "--threads", "1", "--prompt", "aaaaaaaa", "--model"];
        words.into_iter().map(str::to_owned).chain([text(folder)]).collect()
    })
}

/// A file of GGUF with these numbers of tensors and keys, and what follows.
fn gguf(tensors: u64, keys: u64, rest: Vec<u8>) -> Make {
    let bytes = [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes(), &rest].concat();
    Box::new(move |folder| {
        fs::write(folder.join("bomb.gguf"), &bytes).unwrap();
        generate(&folder.join("bomb.gguf"))
    })
}

/// A key `k` of GGUF that is a list of `count` items of this kind.
fn list(kind: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&1u64.to_le_bytes()[..], b"k", &9u32.to_le_bytes(), &kind.to_le_bytes(), &count.to_le_bytes(), items].concat()
}

/// The description of a tensor `k` of GGUF.
fn placed(shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let extents: Vec<u8> = shape.iter().flat_map(|extent| extent.to_le_bytes()).collect();
    let rank = (shape.len() as u32).to_le_bytes();
    [&1u64.to_le_bytes()[..], b"k", &rank, &extents, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

/// The golden adapter with one of its files instead.
fn adapter(name: &'static str, bytes: impl Into<Vec<u8>>) -> Make {
    let bytes = bytes.into();
    Box::new(move |folder| {
        let from = format!("{}/lora_qv", golden("qwen2-tiny"));
        let to = folder.join("adapter");
        fs::create_dir(&to).unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(Path::new(&from).join(name), to.join(name)).unwrap();
        }
        fs::write(to.join(name), &bytes).unwrap();
        [generate(folder), vec!["--adapter".into(), text(&to)]].concat()
    })
}

fn replacements(count: usize) -> Value {
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    json!({"type": "Sequence", "normalizers": vec![double; count]})
}

fn safetensors() -> Vec<(&'static str, Make)> {
    let claims = |length: u64| weights([&length.to_le_bytes()[..], b"{}"].concat());
    let huge = tensor("model.embed_tokens.weight", "[4294967296,4294967296,2]", 8);
    let terabyte = tensor("model.embed_tokens.weight", "[512,536870912]", 1 << 40);
    let twice = tensor("a", "[2]", 8);
    let metadata: Vec<String> = (0..100_000).map(|at| format!("\"{at}\":\"\"")).collect();
    vec![
        ("a header of 2^63 bytes", claims(1 << 63)),
        ("a header of 2^64 - 1 bytes", claims(u64::MAX)),
        ("a header of 64 GB", claims(1 << 36)),
        ("a header of 16 MB that is not there", claims(16_000_000)),
        ("a header of 99 MB of zeros", header(vec![0; 99_000_000], 0)),
        ("a header of 16 MB of spaces", header(format!("{{{}", " ".repeat(15_999_000)), 0)),
        ("a million tensors", header(empty_tensors(1_000_000), 0)),
        ("one tensor too many", header(empty_tensors(100_001), 0)),
        ("as many tensors as are allowed, none of them known", header(empty_tensors(100_000), 0)),
        ("a deep header", header(format!("{{\"a\":{}", "[".repeat(1_000_000)), 0)),
        ("a name of 15 MB", header(format!("{{{}}}", tensor(&"n".repeat(15_000_000), "[0]", 0)), 0)),
        ("metadata of 15 MB", header(format!("{{\"__metadata__\":{{\"k\":\"{}\"}}}}", "v".repeat(15_000_000)), 0)),
        ("a hundred thousand notes", header(format!("{{\"__metadata__\":{{{}}}}}", metadata.join(",")), 0)),
        ("a shape beyond memory", header(format!("{{{huge}}}"), 8)),
        (
            "a shape of two million extents",
            header(format!("{{{}}}", tensor("a", &format!("[{}1]", "1,".repeat(2_000_000)), 4)), 4),
        ),
        ("a tensor of a terabyte of nothing", header(format!("{{{terabyte}}}"), 1 << 40)),
        ("a tensor twice", header(format!("{{{twice},{twice}}}"), 8)),
        ("a terabyte behind the last tensor", header("{}", 1 << 40)),
        ("a file of a terabyte of zeros", sparse(WEIGHTS, 1 << 40)),
    ]
}

fn folders() -> Vec<(&'static str, Make)> {
    let map = |count: usize, file: &dyn Fn(usize) -> String| {
        let entries: Vec<String> = (0..count).map(|at| format!("\"{at}\":\"{}\"", file(at))).collect();
        format!("{{\"weight_map\":{{{}}}}}", entries.join(","))
    };
    vec![
        ("an index of 17 MB", index(map(1_000_000, &|_| "a.safetensors".into()))),
        ("a thousand and one shards", index(map(1_001, &|at| format!("{at}.safetensors")))),
        ("three hundred thousand shards", index(map(300_000, &|at| format!("{at}.safetensors")))),
        ("an index of tensors that are not there", index(map(300_000, &|_| "a.safetensors".into()))),
        ("a deep index", index(format!("{{\"weight_map\":{}", "[".repeat(1_000_000)))),
        ("an index that climbs", index(map(1, &|_| "../".repeat(50) + "etc/passwd"))),
        ("a config of 2 MB", config("a", json!("x".repeat(2_000_000)))),
        ("a deep config", file("config.json", "[".repeat(900_000), generate)),
        ("a config of a terabyte", sparse("config.json", 1 << 40)),
        ("a billion layers", config("num_hidden_layers", json!(1_000_000_000))),
        ("a thousand layers", config("num_hidden_layers", json!(1_024))),
        ("2^64 - 1 tokens", config("vocab_size", json!(u64::MAX))),
        ("sixteen million features", config("hidden_size", json!(1 << 24))),
        ("sixteen million heads", config("num_attention_heads", json!(1 << 24))),
        ("heads of sixteen million", config("head_dim", json!(1 << 24))),
        ("layer types without end", config("layer_types", json!(vec!["full_attention"; 50_000]))),
        ("a generation config of a terabyte", sparse("generation_config.json", 1 << 40)),
        ("a deep generation config", file("generation_config.json", "[".repeat(1_000_000), generate)),
        (
            "modules of a terabyte",
            Box::new(|folder| {
                File::create(folder.join("modules.json")).unwrap().set_len(1 << 40).unwrap();
                set_config(folder, "model_type", json!("bert"));
                embed(folder)
            }),
        ),
    ]
}

fn tokenizers() -> Vec<(&'static str, Make)> {
    let part = |key: &'static str, value: Value| tokenizer(move |tokenizer| tokenizer[key] = value.clone());
    let template = |source: &str| {
        let config = json!({"chat_template": source}).to_string();
        file("tokenizer_config.json", config, |folder| {
            let words = ["generate", "--backend", "flex", "--threads", "1", "--prompt", "a", "--chat", "--model"];
            words.into_iter().map(str::to_owned).chain([text(folder)]).collect()
        })
    };
    vec![
        ("a tokenizer of a terabyte", sparse("tokenizer.json", 1 << 40)),
        ("a deep tokenizer", file("tokenizer.json", "[".repeat(1_000_000), generate)),
        ("forty doublings", part("normalizer", replacements(40))),
        (
            "forty doublings when decoding",
            part("decoder", {
                let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
                json!({"type": "Sequence", "decoders": vec![double; 40]})
            }),
        ),
        (
            "a letter that becomes a megabyte",
            part("normalizer", json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(1 << 20)})),
        ),
        (
            "nothing that becomes a megabyte",
            part("normalizer", json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "b".repeat(1 << 20)})),
        ),
        ("a prefix of a megabyte", part("normalizer", json!({"type": "Prepend", "prepend": "b".repeat(1 << 20)}))),
        ("pieces of no length", part("pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
        (
            "words of any length",
            part(
                "model",
                json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": u32::MAX, "vocab": {"[UNK]": 0}}),
            ),
        ),
        ("a tokenizer's config of a terabyte", sparse("tokenizer_config.json", 1 << 40)),
        ("a template of a terabyte", sparse("chat_template.jinja", 1 << 40)),
        (
            "a template that writes without end",
            template("{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}"),
        ),
        ("a template that calls itself", template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")),
        ("a template in ten thousand blocks", template(&"{% if true %}".repeat(10_000))),
    ]
}

fn others() -> Vec<(&'static str, Make)> {
    let matrices = "adapter_model.safetensors";
    let header = |json: String| [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
    vec![
        ("an adapter with a header of 2^63 bytes", adapter(matrices, (1u64 << 63).to_le_bytes())),
        ("an adapter with a header of 2 MB", adapter(matrices, header(" ".repeat(2_000_000)))),
        ("an adapter of ten thousand and one tensors", adapter(matrices, header(empty_tensors(10_001)))),
        (
            "an adapter's config of 2 MB",
            adapter("adapter_config.json", format!("{{\"a\":\"{}\"}}", "x".repeat(2_000_000))),
        ),
        (
            "an expression that explodes",
            adapter(
                "adapter_config.json",
                json!({"peft_type": "LORA", "target_modules": "((a{100}){100}){100}"}).to_string(),
            ),
        ),
        ("ten thousand patterns", {
            let patterns: serde_json::Map<String, Value> = (0..10_000).map(|at| (format!("{at}"), json!(1))).collect();
            adapter(
                "adapter_config.json",
                json!({"peft_type": "LORA", "target_modules": ["q_proj"], "rank_pattern": patterns}).to_string(),
            )
        }),
        ("2^64 - 1 tensors of GGUF", gguf(u64::MAX, 0, vec![])),
        ("2^64 - 1 keys of GGUF", gguf(0, u64::MAX, vec![])),
        ("a hundred thousand tensors that are not there", gguf(100_000, 0, vec![])),
        ("a list of 2^64 - 1 numbers", gguf(0, 1, list(0, u64::MAX, &[]))),
        ("a list of a million and a half texts", gguf(0, 1, list(8, 3 << 19, &vec![0; 12 << 20]))),
        ("lists in lists", gguf(0, 1, list(9, 1, &nested.repeat(100_000)))),
        ("a text of 2^63 bytes", gguf(0, 1, (1u64 << 63).to_le_bytes().to_vec())),
        ("a tensor of GGUF beyond memory", gguf(1, 0, placed(&[1 << 40, 1 << 40], 0, 0))),
        ("a tensor of GGUF of a terabyte", gguf(1, 0, placed(&[1 << 38], 0, 0))),
        ("a tensor of GGUF far away", gguf(1, 0, placed(&[1], 0, u64::MAX - 8))),
        (
            "a tensor of four billion dimensions",
            gguf(1, 0, [&1u64.to_le_bytes()[..], b"k", &u32::MAX.to_le_bytes()].concat()),
        ),
    ]
}

/// Runs within so much address space; status, messages, and the processor's time, which does not count who else is busy.
fn run_within(bytes: u64, words: &[String]) -> (Option<i32>, String, Duration) {
    let script = "ulimit -v $0 && \"$@\"; status=$?; times >&2; exit $status";
    let output = Command::new("sh")
        .args(["-c", script, &(bytes >> 10).to_string(), env!("CARGO_BIN_EXE_firebrick")])
        .args(words)
        // A thread that asks for memory first would reserve 64 MB of addresses, or not, as it happens.
        .env("MALLOC_ARENA_MAX", "1")
        .env("HF_HUB_OFFLINE", "1")
        .env("FIREBRICK_CACHE", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    // The last line is of the children: `0m0.040000s 0m0.010000s`, as user and as system.
    let spent = message.lines().next_back().unwrap().split_whitespace().map(|time| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    });
    let spent = Duration::from_secs_f64(spent.sum());
    (output.status.code(), message, spent)
}

/// The least address space, to 4 MB, in which a good file loads, and how long that takes.
fn of_a_good_file() -> (u64, Duration) {
    let folder = copy(&golden("qwen2-tiny"));
    let words = generate(folder.path());
    let (mut least, mut most) = (0, 16u64 << 30);
    let (status, message, time) = run_within(most, &words);
    assert_eq!(status, Some(0), "{message}");
    while most - least > 4 << 20 {
        let middle = (least + most) / 2;
        if run_within(middle, &words).0 == Some(0) { most = middle } else { least = middle }
    }
    (most, time)
}

#[test]
fn a_bomb_is_an_error_that_costs_little() {
    let (memory, good) = of_a_good_file();
    let bombs: Vec<_> = [safetensors(), folders(), tokenizers(), others()].into_iter().flatten().collect();
    let (count, mut slowest, mut failures) = (bombs.len(), (Duration::ZERO, ""), Vec::new());
    assert!(count >= 60, "{count}");
    for (name, make) in bombs {
        let folder: TempDir = copy(&golden("qwen2-tiny"));
        let words = make(folder.path());
        let (status, message, mut time) = run_within(memory + EXTRA, &words);
        // Neighbours on the same core slow it down all the same: the fastest of three counts.
        for _ in 0..2 {
            if time > good + TIME {
                time = time.min(run_within(memory + EXTRA, &words).2);
            }
        }
        slowest = slowest.max((time.saturating_sub(good), name));
        let is_error = status == Some(1) && message.contains("error: ") && !message.contains("panicked");
        if !is_error || time > good + TIME {
            let message: String = message.chars().take(300).collect();
            failures.push(format!("{name}: status {status:?} after {time:?}: {message}"));
        }
    }
    println!(
        "{count} bombs, each an error within {} MB, a good file takes {} MB and {good:?}",
        (memory + EXTRA) >> 20,
        memory >> 20
    );
    println!("the slowest took {:?} longer than a good file: {}", slowest.0, slowest.1);
    assert!(failures.is_empty(), "{} of {count}\n{}", failures.len(), failures.join("\n"));
}
