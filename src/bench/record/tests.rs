//! Records: the format, its strictness, medians and ratios.

use super::*;

const LINE: &str = r#"{"run": "2026-11-21T13:40:00Z-1a2b", "workload": {"workload": "softmax", "rows": 1024, "width": 1024, "dtype": "f32"},
 "implementation": "flex", "peer": false, "status": "measured", "reason": null,
 "device": {"name": "AMD EPYC", "driver": "AVX-512", "kind": "CPU"}, "threads": 2, "date": "2026-11-21", "commit": "1f7e009", "clean": true,
 "machine": {"name": "linux-2-cores", "cpu": "AMD EPYC", "cores": 2, "memory_bytes": 25000000000, "os": "Linux 6.1"},
 "versions": {"firebrick": "0.1.0", "burn": "0.21.0"}, "warm_up": 3, "calls": 40, "cold_seconds": 0.01,
 "samples": [0.001, 0.002, 0.003], "median": 0.002, "low": 0.0015, "high": 0.0025,
 "work": {"bytes": 8388608, "operations": 0, "tokens": 0}, "rate": {"value": 4.194, "unit": "GB/s"},
 "roof": {"bytes_per_second": 9.0e9, "operations_per_second": 2.9e11}, "of_roof": 0.466,
 "peak_bytes": 123456789, "launches_per_token": null, "parts": {}}"#;

fn line() -> String {
    LINE.replace('\n', "")
}

fn folder_with(lines: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("2026-11-21-matrix-linux-2-cores.jsonl");
    std::fs::write(&path, lines).unwrap();
    (folder, path)
}

#[test]
fn a_record_is_read_and_written_and_the_same() {
    let (folder, path) = folder_with(&format!("{}\n\n", line()));
    let records = read(&path).unwrap();
    assert_eq!(records[0].label(), "softmax [1024, 1024] f32");
    assert_eq!((records[0].device.kind, records[0].status), (Kind::Cpu, Status::Measured));
    append(&path, &records).unwrap();
    let twice = read_folder(folder.path()).unwrap();
    assert_eq!(twice, [records[0].clone(), records[0].clone()]);
    let elsewhere = folder.path().join("new/folder/records.jsonl");
    append(&elsewhere, &records).unwrap();
    assert_eq!(read(&elsewhere).unwrap(), records);
}

#[test]
fn what_is_no_record_is_named_by_file_and_line() {
    let wrong = [
        ("not JSON", line().replace("\"run\"", "run")),
        ("unknown key", line().replace("\"threads\"", "\"thread\"")),
        ("unknown kind", line().replace("\"CPU\"", "\"GPU\"")),
        ("an edited median", line().replace("\"median\": 0.002", "\"median\": 0.0021")),
        ("an edited rate", line().replace("4.194", "5.194")),
        ("an edited sample", line().replace("0.001, ", "0.0011, ")),
        ("no samples", line().replace("[0.001, 0.002, 0.003]", "[]")),
        ("a sample of no time", line().replace("0.001, ", "0, ")),
        ("figures of nothing", line().replace("\"measured\", \"reason\": null", "\"refused\", \"reason\": \"no\"")),
        ("nameless", line().replace("\"workload\": \"softmax\", ", "")),
    ];
    for (what, wrong) in wrong {
        let (_folder, path) = folder_with(&format!("{}\n{wrong}\n", line()));
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("linux-2-cores.jsonl:2: "), "{what}: {error}");
    }
    let (folder, _) = folder_with(&line().replace("linux-2-cores", "mac-8-cores"));
    let error = read_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("belongs to 2026-11-21-matrix-mac-8-cores.jsonl"), "{error}");
}

#[test]
fn quartiles_are_between_values_in_proportion() {
    assert_eq!(Spread::of(&[4.0, 1.0, 3.0, 2.0]), Some(Spread { median: 2.5, low: 1.75, high: 3.25 }));
    assert_eq!(Spread::of(&[5.0]), Some(Spread { median: 5.0, low: 5.0, high: 5.0 }));
    assert_eq!(Spread::of(&[]), None);
    assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
}

#[test]
fn a_ratio_is_of_rounds_and_only_of_one_run() {
    let ours: Record = serde_json::from_str(&line()).unwrap();
    let theirs = Record { implementation: "pytorch".into(), peer: true, ..ours.clone() };
    let theirs = theirs.with_samples(vec![0.002, 0.002, 0.012]);
    // By rounds 2, 1 and 4; the ratio of the medians would be 1.
    assert_eq!(ratio(&theirs, &ours).unwrap().median, 2.0);
    assert_eq!(ratio(&Record { run: "another".into(), ..theirs.clone() }, &ours), None);
    let mut other = theirs.clone();
    other.workload.insert("rows".into(), 64.into());
    assert_eq!(ratio(&other, &ours), None);
    assert_eq!(ratio(&theirs.with_samples(Vec::new()), &ours), None);
}

#[test]
fn labels_say_every_key() {
    let label = |text: &str| label(&serde_json::from_str(text).unwrap());
    assert_eq!(
        label(r#"{"workload": "matmul", "rows": 32, "inputs": 896, "outputs": 4864, "dtype": "f16"}"#),
        "matmul [32, 896] → 4864 f16"
    );
    assert_eq!(
        label(r#"{"workload": "attention", "tokens": 512, "heads": 14, "kv_heads": 2, "dim": 64, "dtype": "f32"}"#),
        "attention [512, 14, 64] of 2 kv heads f32"
    );
    assert_eq!(
        label(r#"{"workload": "generate", "prompt": 32, "tokens": 64, "model": "/a/qwen2.5-0.5b/", "dtype": "f32"}"#),
        "generate 64 tokens after 32, qwen2.5-0.5b f32"
    );
    let lora =
        r#"{"workload": "lora_step", "tokens": 128, "rank": 8, "counted": "half", "model": "m", "dtype": "f32"}"#;
    assert_eq!(label(lora), "lora_step 128 tokens rank 8, half counted, m f32");
    assert_eq!(label(r#"{"workload": "embed", "texts": [["a b", "c"], ["d", "e"]]}"#), "embed 2 texts of 1 to 2 words");
    assert_eq!(
        label(r#"{"workload": "gelu", "rows": 1, "width": 896, "reference": true, "dtype": "f32"}"#),
        "gelu [1, 896] of Burn's own ops f32"
    );
    assert_eq!(
        label(r#"{"workload": "embed", "texts": 5, "lengths": "4 to 256", "dtype": "f32"}"#),
        "embed 5 texts of 4 to 256 tokens f32"
    );
    assert_eq!(label(r#"{"workload": "embed", "texts": 1, "lengths": "32"}"#), "embed 1 text of 32 tokens");
    assert_eq!(
        label(r#"{"workload": "next_token", "after": 512, "cached": false, "dtype": "f32"}"#),
        "next_token after 512, no cache f32"
    );
    assert_eq!(label(r#"{"workload": "new", "size": 3, "dtype": "f32"}"#), "new, size 3 f32");
}

#[test]
fn the_newest_run_of_each_machine_and_workload_is_kept() {
    let old: Record = serde_json::from_str(&line()).unwrap();
    let new = Record { run: "2026-11-22T00:00:00Z-0000".into(), ..old.clone() };
    let mut failed = new.clone().with_samples(Vec::new());
    (failed.status, failed.reason, failed.rate) = (Status::Refused, Some("no".into()), None);
    let mut mac = old.clone();
    mac.machine.name = "mac".into();
    // What the newer run does not have is still the older one's.
    let mut other = old.clone();
    other.workload.insert("rows".into(), 7.into());
    // As many cores with the same instructions, and yet another processor.
    let mut another = old.clone();
    another.machine.cpu = "Zylinder 9".into();
    let cpu = old.machine.cpu.clone();
    let all = [new.clone(), old, mac, failed, other.clone(), another.clone()];
    let machines = newest(&all);
    let expected = [("linux-2-cores", &*cpu), ("linux-2-cores", "Zylinder 9"), ("mac", &*cpu)];
    assert_eq!(machines.keys().copied().collect::<Vec<_>>(), expected);
    assert_eq!((&machines[&expected[0]][..], &machines[&expected[1]][..]), (&[&new, &other][..], &[&another][..]));
}

#[test]
fn patterns_match_whole_labels() {
    for (pattern, text, is) in [
        ("softmax [1, *] f32", "softmax [1, 896] f32", true),
        ("softmax [1, *] f32", "softmax [1, 896] f16", false),
        ("softmax*", "softmax", true),
        ("*, *f16", "prefill 512 tokens, qwen f16", true),
        ("softmax", "softmax [1]", false),
        ("*", "", true),
    ] {
        assert_eq!(matches(pattern, text), is, "{pattern} {text}");
    }
}
