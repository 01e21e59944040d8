//! `logits` and `score`: numbers of a whole sequence.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::command::{golden, ids, keys, rows_of, run, rust_tiny, text};
use crate::support::{Golden, assert_golden};

/// `logits` as rows of a file, with its shape and lengths.
fn read(path: &Path) -> (Vec<f32>, Vec<usize>, Vec<i64>) {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (logits, lengths) = (tensors.tensor("logits").unwrap(), tensors.tensor("lengths").unwrap());
    assert_eq!((logits.dtype(), lengths.dtype(), tensors.len()), (Dtype::F32, Dtype::I64, 2));
    let values = logits.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    let lengths = lengths.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
    (values, logits.shape().to_vec(), lengths)
}

#[test]
fn logits_equal_transformers_row_by_row_with_zeros_behind_each() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("logits.safetensors");
    for name in ["qwen2-tiny", "qwen3-tiny"] {
        let expected = Golden::open(name);
        let rows = expected.rows("right_pad.input_ids");
        let lengths: Vec<usize> =
            expected.rows("right_pad.attention_mask").iter().map(|mask| mask.iter().sum::<u32>() as usize).collect();
        let sequences: Vec<String> = rows.iter().zip(&lengths).map(|(row, &length)| ids(&row[..length])).collect();
        let mut words = vec!["--output", output.to_str().unwrap()];
        sequences.iter().for_each(|sequence| words.extend(["--tokens", sequence]));
        let said = run(&format!("logits --json --model {}", golden(name)), &words).json();
        let (values, shape, found) = read(&output);
        assert_eq!(said, json!({"shape": shape, "output": text(&output)}));
        assert_eq!(found, lengths.iter().map(|&length| length as i64).collect::<Vec<_>>());
        let longest = *lengths.iter().max().unwrap();
        let (golden_logits, golden_shape) = expected.floats("right_pad.logits");
        let vocabulary = golden_shape[2];
        assert_eq!(shape, [rows.len(), longest, vocabulary]);
        for (row, &length) in lengths.iter().enumerate() {
            let values = &values[row * longest * vocabulary..][..longest * vocabulary];
            let golden_logits = &golden_logits[row * golden_shape[1] * vocabulary..][..length * vocabulary];
            assert_golden(&values[..length * vocabulary], golden_logits, name);
            assert!(values[length * vocabulary..].iter().all(|&value| value == 0.0), "padding of row {row}");
        }
    }
}

#[test]
fn logits_of_an_adapter_equal_peft() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("l");
    let expected = Golden::open("qwen3-tiny");
    let tokens = ids(&expected.rows("single.input_ids")[0]);
    let adapter = golden("qwen3-tiny/lora_qv");
    let words = format!("logits --model {} --adapter {adapter} --tokens {tokens}", golden("qwen3-tiny"));
    assert_eq!(run(&words, &["--quiet", "--output", output.to_str().unwrap()]).ok().err, "");
    assert_golden(&read(&output).0, &expected.floats("lora_qv.logits").0, "lora_qv");
}

#[test]
fn logits_refuse_what_they_cannot_do_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("l");
    let words = format!("logits --model {} --output {}", golden("qwen2-tiny"), output.display());
    assert!(run(&words, &["--tokens", "1", "--tokens", ""]).misuse().contains("empty"));
    for (tokens, told) in [("5,512", "512"), (ids(&[1; 513]).as_str(), "513")] {
        let error = run(&words, &["--tokens", "1", "--tokens", tokens]).error();
        assert!(error.contains(told), "{error}");
    }
    assert!(crate::command::names(folder.path()).is_empty());
    let words = format!("logits --model {} --tokens 1 --output", golden("qwen2-tiny"));
    assert!(run(&words, &["/nowhere/l"]).error().contains("there is no folder /nowhere"));
    assert!(run(&words, &[&text(folder.path())]).misuse().contains("is a folder"));
}

#[test]
fn a_score_is_the_cross_entropy_of_the_logits() {
    let folder = tempfile::tempdir().unwrap();
    let (data, logits) = (folder.path().join("rows.jsonl"), folder.path().join("l"));
    fs::write(&data, "{\"text\": \"def add(a, b):\"}\n").unwrap();
    let model = golden("qwen2-tiny");
    let words = format!("generate --json --max-tokens 0 --model {model}");
    let prompt = run(&words, &["--prompt", "def add(a, b):"]).json()["prompt_tokens"].clone();
    let mut tokens: Vec<u32> = serde_json::from_value(prompt).unwrap();
    tokens.push(2); // A row of text ends with the end-of-sequence token.
    let words = format!("logits --model {model} --tokens {} --output {}", ids(&tokens), logits.display());
    run(&words, &[]).ok();
    let (values, shape, _) = read(&logits);
    let loss = |(row, &next): (&[f32], &u32)| {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(row[next as usize])
    };
    let total: f64 = values.chunks(shape[2]).zip(&tokens[1..]).map(loss).sum();
    let expected = total / (tokens.len() - 1) as f64;
    let lines = run(&format!("score --json --model {model} --data {}", data.display()), &[]).lines();
    assert_eq!((&lines[0]["row"], &lines[0]["tokens"]), (&json!(1), &json!(tokens.len() - 1)));
    assert!((lines[0]["loss"].as_f64().unwrap() - expected).abs() < 1e-4, "{} {expected}", lines[0]);
}

#[test]
fn a_line_for_each_row_then_their_sum() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    fs::write(&data, rows_of("valid.jsonl", 4)).unwrap();
    let words = format!("score --model {} --data {}", rust_tiny(), data.display());
    let lines = run(&words, &["--json", "--quiet"]).lines();
    let (sum, rows) = lines.split_last().unwrap();
    assert_eq!(
        (rows.len(), keys(&rows[0]), keys(sum)),
        (4, vec!["row", "tokens", "loss"], vec!["rows", "tokens", "loss", "perplexity"])
    );
    let of = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap();
    let tokens: f64 = rows.iter().map(|row| of(row, "tokens")).sum();
    let loss = rows.iter().map(|row| of(row, "tokens") * of(row, "loss")).sum::<f64>() / tokens;
    assert_eq!((of(sum, "rows"), of(sum, "tokens")), (4.0, tokens));
    assert!((of(sum, "loss") - loss).abs() < 1e-9 && (of(sum, "perplexity") - of(sum, "loss").exp()).abs() < 1e-9);
    // For people: the rows are the result, the sum is a note.
    let human = run(&words, &[]).ok();
    assert_eq!(human.out.lines().count(), 4);
    assert!(human.err.contains("perplexity"), "{}", human.err);

    let tokens = |more: &[&str]| -> Vec<u64> {
        let mut lines = run(&words, &[&["--json"], more].concat()).lines();
        lines.pop();
        lines.iter().map(|line| line["tokens"].as_u64().unwrap()).collect()
    };
    let (whole, masked) = (tokens(&[]), tokens(&["--mask-prompt"]));
    assert!(whole.iter().zip(&masked).all(|(whole, masked)| masked < whole), "--mask-prompt: {whole:?} {masked:?}");
    let over = |policy: &str| tokens(&["--max-seq-len", "130", "--over-long", policy]);
    assert!(over("truncate").iter().all(|&tokens| tokens <= 129));
    assert!(over("drop").len() < 4 && over("split").len() == 4, "a split row is still one row");
    assert!(over("split").iter().sum::<u64>() > over("truncate").iter().sum());
}

#[test]
fn a_bad_row_is_named_by_file_and_line_or_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    let mut rows = rows_of("valid.jsonl", 2).into_bytes();
    rows.extend(b"oops\n{\"text\": \"another form\"}\n{\"prompt\": 1, \"completion\": \"x\"}\n\n\xff\n");
    fs::write(&data, rows).unwrap();
    let words = format!("score --json --model {} --data {}", rust_tiny(), data.display());
    let error = run(&words, &[]).error();
    assert!(error.contains(&format!("{}:3: ", data.display())), "{error}");
    let skipped = run(&words, &["--bad-rows", "skip"]);
    for line in [3, 4, 5, 7] {
        assert!(skipped.err.contains(&format!("rows.jsonl:{line}: ")), "{}", skipped.err);
    }
    assert!(skipped.err.contains("4 of 6 rows"), "{}", skipped.err);
    assert_eq!(skipped.lines().last().unwrap()["rows"], 2);
    assert_eq!(run(&words, &["--bad-rows", "skip", "--quiet"]).ok().err, "");
    fs::write(&data, "").unwrap();
    assert!(run(&words, &[]).error().contains("rows.jsonl"));
    let words = format!("score --model {} --data /nowhere/rows.jsonl", rust_tiny());
    assert!(run(&words, &[]).error().contains("/nowhere/rows.jsonl"));
}
