//! `embed`: lines and jsonl in, three forms out, and rows that cost only themselves.

use std::fs;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Value, json};

use crate::command::{golden, run, run_on, text};
use crate::support::{renamed, repository};

const TEXTS: [&str; 5] = ["query: how do I sort a list in python", "short", "", "naïve café résumé", "short"];

fn embed(more: &[&str]) -> crate::command::Ran {
    run(&format!("embed --model {}", golden("bert-tiny")), more)
}

fn vector(line: &Value) -> Vec<f32> {
    line["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// The rows of a matrix that numpy would read.
fn npy(path: &Path) -> (usize, usize, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((length + 10) % 64, 0);
    let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (") && header.ends_with('\n'));
    let shape = header.split(['(', ')']).nth(1).unwrap();
    let (rows, width) = shape.split_once(", ").unwrap();
    let floats = bytes[10 + length..].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    (rows.parse().unwrap(), width.parse().unwrap(), floats.collect())
}

#[test]
fn each_line_has_a_vector_in_its_place() {
    let lines = run_on(TEXTS.join("\n"), &format!("embed --model {}", golden("bert-tiny")), &[]).lines();
    assert_eq!(lines.len(), TEXTS.len());
    for (index, line) in lines.iter().enumerate() {
        assert_eq!((&line["index"], &line["truncated"]), (&json!(index), &json!(false)));
        assert!(line["tokens"].as_u64().unwrap() >= 2);
        let length: f32 = vector(line).iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5 && vector(line).len() == 48);
    }
    assert_eq!(lines[1]["embedding"], lines[4]["embedding"]);
    assert_ne!(lines[1]["embedding"], lines[3]["embedding"]);
}

#[test]
fn all_forms_hold_the_same_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let rows: String = TEXTS.iter().map(|text| json!({"id": 7, "text": text}).to_string() + "\n\n").collect();
    fs::write(at("in.jsonl"), rows).unwrap();
    let lines = embed(&["--input", &text(&at("in.jsonl"))]).lines();
    let expected: Vec<f32> = lines.iter().flat_map(vector).collect();
    for name in ["out.npy", "out.parquet", "out.jsonl"] {
        let ran = embed(&["--input", &text(&at("in.jsonl")), "--output", &text(&at(name)), "--json"]).json();
        assert_eq!((&ran["rows"], &ran["failed"], &ran["dimensions"]), (&json!(5), &json!(0), &json!(48)));
    }
    assert_eq!(npy(&at("out.npy")), (5, 48, expected.clone()));
    let written = fs::read_to_string(at("out.jsonl")).unwrap();
    let written: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(written, lines);
    let reader = SerializedFileReader::new(fs::File::open(at("out.parquet")).unwrap()).unwrap();
    let mut floats = Vec::new();
    for (index, row) in reader.get_row_iter(None).unwrap().enumerate() {
        let columns: Vec<(String, Field)> = row.unwrap().into_columns();
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["index", "tokens", "truncated", "embedding"]);
        assert_eq!(columns[0].1, Field::Long(index as i64));
        assert_eq!(Some(columns[1].1.clone()), lines[index]["tokens"].as_i64().map(Field::Long));
        assert_eq!(columns[2].1, Field::Bool(false));
        let Field::ListInternal(list) = &columns[3].1 else { panic!("{:?}", columns[3].1) };
        floats.extend(list.elements().iter().map(|field| match field {
            Field::Float(value) => *value,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(floats, expected);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn a_bad_row_is_named_and_costs_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    let rows: [&[u8]; 7] = [
        br#"{"text": "short"}"#,
        b"not json",
        br#"{"txt": "short"}"#,
        b"{\"text\": \"\xff\"}",
        br#"{"text": 3}"#,
        br#"{"text": "a\u0000b"}"#,
        br#"{"text": "short"}"#,
    ];
    fs::write(&input, rows.join(&b"\n"[..])).unwrap();
    let ran = embed(&["--input", &text(&input)]).ok();
    for (line, row) in [(2, 1), (3, 2), (4, 3), (5, 4)] {
        assert!(ran.err.contains(&format!("in.jsonl:{line}: row {row} left out: ")), "{}", ran.err);
    }
    let lines = ran.lines();
    let indices: Vec<_> = lines.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 5, 6]);
    assert_eq!(lines[0]["embedding"], lines[2]["embedding"]);
    let matrix = folder.path().join("out.npy");
    embed(&["--input", &text(&input), "--output", &text(&matrix)]).ok();
    let (rows, _, floats) = npy(&matrix);
    let is_zero: Vec<bool> = floats.chunks(48).map(|row| row.iter().all(|x| *x == 0.0)).collect();
    assert_eq!((rows, is_zero), (7, vec![false, true, true, true, true, false, false]));

    let error = embed(&["--input", &text(&input), "--strict"]);
    assert_eq!(error.status, 1);
    assert!(error.err.contains("in.jsonl:2"), "{}", error.err);
}

#[test]
fn ten_megabytes_in_a_line_cost_only_that_line() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.txt");
    fs::write(&input, ["short", &"a".repeat(10 << 20), &"a ".repeat(5 << 20), "short"].join("\n")).unwrap();
    let ran = embed(&["--input", &text(&input)]).ok();
    assert!(ran.err.contains("in.txt:2: row 1 left out"), "{}", ran.err);
    assert!(ran.err.contains("1 of 4 rows are longer than 64 tokens"), "{}", ran.err);
    let lines = ran.lines();
    let facts: Vec<_> = lines.iter().map(|line| (line["index"].as_u64().unwrap(), line["truncated"] == true)).collect();
    assert_eq!(facts, [(0, false), (2, true), (3, false)]);
}

#[test]
fn memory_does_not_grow_with_the_input() {
    let folder = tempfile::tempdir().unwrap();
    let peak = |rows: usize| {
        let (input, output) = (folder.path().join("in.txt"), folder.path().join("out.npy"));
        let line = |i: usize| format!("sort the list {} of python number {i}\n", i % 7);
        fs::write(&input, (0..rows).map(line).collect::<String>()).unwrap();
        // By a shell, since the peak of a process counts that of the one it was forked from, and this one is large.
        let more = ["--output", &text(&output), "--json", "--batch-tokens", "2048", "--threads", "1"];
        let ran = std::process::Command::new("sh")
            .args(["-c", "\"$0\" \"$@\"; exit $?", env!("CARGO_BIN_EXE_firebrick"), "embed", "--model"])
            .args([&golden("bert-tiny"), "--input", &text(&input)])
            .args(more)
            .output()
            .unwrap();
        let summary: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(npy(&output).0, rows);
        summary["peak_rss_bytes"].as_u64().unwrap()
    };
    let (few, many) = (peak(3_000), peak(30_000));
    println!("{few} bytes at 3,000 rows, {many} at 30,000");
    // Their vectors alone would be 5 MB more, and their tokens 3 MB.
    assert!(many < few + (3 << 20), "{few} {many}");
}

#[test]
fn options_change_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let input = text(&folder.path().join("in.txt"));
    fs::write(&input, "capital of France\n").unwrap();
    let one = |more: &[&str]| vector(&embed(&[&["--input", &input], more].concat()).json());
    let plain = one(&[]);
    let cut = one(&["--dimensions", "7"]);
    let length = plain[..7].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(cut.len() == 7 && cut.iter().zip(&plain).all(|(cut, whole)| (cut - whole / length).abs() < 1e-5));
    let adapted = one(&["--adapter", &text(&Path::new(&golden("bert-tiny")).join("lora_all"))]);
    assert!(adapted.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 0.01));

    let e5 = folder.path().join("e5-tiny");
    fs::create_dir_all(e5.join("1_Pooling")).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        fs::copy(Path::new(&golden("bert-tiny")).join(name), e5.join(name)).unwrap();
    }
    let of =
        |kind: &str| vector(&run(&format!("embed --model {} --kind {kind}", text(&e5)), &["--input", &input]).json());
    assert_eq!(of("none"), plain);
    assert_ne!(of("query"), of("passage"));
    assert_ne!(of("query"), plain);
}

#[test]
fn what_cannot_be_done_is_told_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let missing = text(&folder.path().join("missing.txt"));
    assert!(embed(&["--input", &missing]).error().contains("missing.txt"));
    assert!(embed(&["--input", &text(folder.path())]).error().contains("is a folder"));
    assert!(embed(&["--output", &text(folder.path())]).misuse().contains("is a folder"));
    assert!(embed(&["--format", "npy"]).misuse().contains("--format npy needs --output"));
    assert!(embed(&["--dimensions", "49"]).misuse().contains("dimensions"));
    assert!(embed(&["--kind", "question"]).misuse().contains("passage"));
    let decoder = run(&format!("embed --model {}", golden("qwen2-tiny")), &[]).error();
    assert!(decoder.contains("decoder"), "{decoder}");
    let encoder = run(&format!("generate --model {} --prompt a", golden("bert-tiny")), &[]).error();
    assert!(encoder.contains("encoder"), "{encoder}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_encoder_learns_by_the_same_verb_and_keeps_what_it_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    fs::create_dir(folder.path().join("data")).unwrap();
    let words = ["sort", "list", "python", "capital", "France", "Paris", "numbers", "short", "sentence", "while"];
    let row = |i: usize| {
        let (a, b) = (words[i % 10], words[(i * 3 + 1) % 10]);
        json!({"query": format!("{a} {b}"), "positive": format!("use {b} for the {a}"), "negatives": [format!("{i}")]})
    };
    let rows: String = (0..40).map(|i| row(i).to_string() + "\n").collect();
    fs::write(folder.path().join("data/train.jsonl"), &rows).unwrap();
    fs::write(folder.path().join("data/valid.jsonl"), rows.lines().take(10).collect::<Vec<_>>().join("\n")).unwrap();
    let train = |output: &str, more: &[&str]| {
        let words =
            format!("train --model {} --json --steps 12 --batch-size 8 --learning-rate 0.005", golden("bert-tiny"));
        run(&words, &[&["--data", &at("data"), "--output", &at(output)], more].concat())
    };
    let lines = train("adapter", &["--target", "all-linear", "--eval-every", "6"]).lines();
    let evaluated: Vec<&Value> = lines.iter().filter(|line| line.get("recall_at_1").is_some()).collect();
    assert_eq!(evaluated.len(), 3);
    assert!(evaluated.iter().all(|line| line["mrr"].as_f64().unwrap() > 0.0 && line["recall_at_10"].is_number()));
    assert!(evaluated[2]["valid_loss"].as_f64().unwrap() < evaluated[0]["valid_loss"].as_f64().unwrap());
    assert_eq!(lines.last().unwrap()["steps"], 12);

    let input = at("in.txt");
    fs::write(&input, "sort list\n").unwrap();
    let plain = vector(&embed(&["--input", &input]).json());
    let adapted = vector(&embed(&["--input", &input, "--adapter", &at("adapter")]).json());
    run(&format!("merge --model {} --adapter {} --output {}", golden("bert-tiny"), at("adapter"), at("merged")), &[])
        .ok();
    let merged = vector(&run(&format!("embed --model {}", at("merged")), &["--input", &input]).json());
    assert!(plain.iter().zip(&adapted).any(|(a, b)| (a - b).abs() > 1e-3));
    assert!(merged.iter().zip(&adapted).all(|(a, b)| (a - b).abs() < 1e-4));

    // Where the base was saved with a head, its names have a prefix that the adapter's have not.
    let with_head = renamed(&repository("tests/goldens/bert-tiny"), |name| format!("bert.{name}"));
    let base = text(with_head.path());
    let steps = ["--steps", "2", "--learning-rate", "0.01", "--target", "all-linear"];
    run("train", &[&["--model", &base, "--data", &at("data"), "--output", &at("of-head")], &steps[..]].concat()).ok();
    run("merge", &["--model", &base, "--adapter", &at("of-head"), "--output", &at("merged-head")]).ok();
    let adapted = vector(&run("embed", &["--model", &base, "--adapter", &at("of-head"), "--input", &input]).json());
    let merged = vector(&run("embed", &["--model", &at("merged-head"), "--input", &input]).json());
    assert!(merged.iter().zip(&adapted).all(|(a, b)| (a - b).abs() < 1e-4) && plain != merged);

    // Each option shows in the first loss.
    let loss = |more: &[&str], name: &str| train(name, more).lines()[1]["loss"].as_f64().unwrap();
    let losses = [loss(&[], "a"), loss(&["--temperature", "0.5"], "b"), loss(&["--symmetric"], "c")];
    assert!(losses[0] != losses[1] && losses[0] != losses[2], "{losses:?}");
    assert!(train("d", &["--mask-prompt"]).error().contains("mask_prompt"));
    assert!(train("e", &["--over-long", "drop"]).error().contains("over_long"));
    assert!(train("f", &["--temperature", "0"]).misuse().contains("temperature"));
    let decoder = format!("train --model {} --symmetric", golden("qwen2-tiny"));
    assert!(run(&decoder, &["--data", &at("data"), "--output", &at("g")]).error().contains("symmetric"));
}

#[test]
#[cfg(unix)]
fn a_signal_ends_the_work_at_once_and_leaves_nothing_behind() {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    for (signal, status, file) in
        [("-INT", 130, true), ("-TERM", 143, true), ("-INT", 130, false), ("-TERM", 143, false)]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut command = crate::command::binary();
        command.args(["embed", "--model", &golden("bert-tiny")]).current_dir(folder.path());
        command.args(if file { &["--output", "out.npy"][..] } else { &[] });
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // More may come: it waits for it.
        child.stdin.as_mut().unwrap().write_all(b"one\ntwo\n").unwrap();
        let begun = Instant::now();
        while file && fs::read_dir(folder.path()).unwrap().count() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "no output was begun");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(if file { 50 } else { 500 }));
        let told = Instant::now();
        assert!(std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        while child.try_wait().unwrap().is_none() {
            assert!(told.elapsed() < Duration::from_secs(5), "{signal} was not heeded");
            std::thread::sleep(Duration::from_millis(5));
        }
        // To a shell it is the same whether the process ends itself or the system does.
        let ended = child.wait().unwrap();
        assert_eq!(ended.code().or(ended.signal().map(|signal| 128 + signal)), Some(status));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "a file was left behind");
    }
}

#[test]
#[cfg(unix)]
fn an_output_that_is_no_plain_file_is_written_through_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("in.txt"), "one\ntwo\n").unwrap();
    fs::write(at("real.jsonl"), "before").unwrap();
    std::os::unix::fs::symlink(at("real.jsonl"), at("link.jsonl")).unwrap();
    std::os::unix::fs::symlink("/dev/stdout", at("stdout")).unwrap();
    let to = |name: &str| embed(&["--input", &text(&at("in.txt")), "--output", &text(&at(name))]);
    to("link.jsonl").ok();
    assert!(at("link.jsonl").is_symlink());
    assert_eq!(fs::read_to_string(at("real.jsonl")).unwrap().lines().count(), 2);
    assert_eq!(to("stdout").ok().out.lines().count(), 2);
    assert!(at("stdout").is_symlink());
    std::os::unix::fs::symlink("/dev/null", at("null.npy")).unwrap();
    assert!(to("null.npy").error().contains("no file"));
    assert!(at("null.npy").is_symlink());
}
