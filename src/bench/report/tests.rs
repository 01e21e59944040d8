//! The report of a tiny matrix, whole.

use super::*;
use crate::bench::record::{Device, Machine, Rate, Roof, Unit, WAITING, Work};

/// A record of `samples` milliseconds.
fn record(name: &str, width: usize, implementation: &str, samples: &[f64]) -> Record {
    let peer = ORDER.iter().position(|known| *known == implementation).is_some_and(|at| at >= OURS);
    let software = implementation == "wgpu";
    let bytes = 8 * 1024 * width as u64;
    let workload = serde_json::json!({"workload": name, "rows": 1024, "width": width, "dtype": "f32"});
    let mut record = Record {
        run: "2026-11-21T13:40:00Z-1a2b".into(),
        workload: workload.as_object().unwrap().clone(),
        implementation: implementation.into(),
        peer,
        status: Status::Measured,
        reason: None,
        device: Device {
            name: if software { "llvmpipe" } else { "AMD EPYC" }.into(),
            driver: if software { "Mesa 25.0" } else { "AVX-512" }.into(),
            kind: if software { Kind::Software } else { Kind::Cpu },
        },
        threads: 2,
        date: "2026-11-21".into(),
        commit: "1f7e009".into(),
        clean: true,
        machine: Machine {
            name: "linux-2-cores".into(),
            cpu: "AMD EPYC".into(),
            cores: 2,
            memory_bytes: 25_000_000_000,
            os: "Linux 6.1".into(),
        },
        settings: BTreeMap::from([(WAITING.to_owned(), "default".to_owned())]),
        versions: BTreeMap::from([(if peer { implementation } else { "firebrick" }.into(), "0.1.0".into())]),
        warm_up: 3,
        calls: 40,
        cold_seconds: Some(0.01),
        samples: Vec::new(),
        median: None,
        low: None,
        high: None,
        work: Work { bytes, operations: 0, tokens: 0 },
        rate: None,
        roof: None,
        of_roof: None,
        peak_bytes: None,
        launches_per_token: None,
        perplexity: None,
        copy_seconds: None,
        parts: BTreeMap::new(),
    };
    record = record.with_samples(samples.iter().map(|milliseconds| milliseconds / 1e3).collect());
    let gigabytes = |median: f64| bytes as f64 / median / 1e9;
    record.rate = record.median.map(|median| Rate { value: gigabytes(median), unit: Unit::GigabytesPerSecond });
    if !peer {
        record.roof = Some(Roof { bytes_per_second: 2e10, operations_per_second: 3e11 });
        record.of_roof = record.rate.as_ref().map(|rate| rate.value / 20.0);
    }
    record
}

fn without(mut record: Record, status: Status, reason: &str) -> Record {
    (record.status, record.reason, record.rate, record.of_roof) = (status, Some(reason.into()), None, None);
    record.with_samples(Vec::new())
}

/// Of a whole model: its own keys, a unit of tokens.
fn step(implementation: &str, samples: &[f64]) -> Record {
    let mut record = record("lora_step", 1, implementation, samples);
    let workload = serde_json::json!({
        "workload": "lora_step", "tokens": 128, "rank": 8, "counted": "half", "model": "/models/qwen/", "dtype": "f32"
    });
    record.workload = workload.as_object().unwrap().clone();
    record.rate = record.median.map(|median| Rate { value: 128.0 / median, unit: Unit::TokensPerSecond });
    record.parts = ["forward", "backward", "optimizer"].map(|part| (part.to_owned(), 0.1)).into();
    (record.peak_bytes, record.of_roof, record.roof) = (Some(1_234_567_890), None, None);
    record
}

/// What only a process of its own can tell.
fn probe(of: &str, implementation: &str, peak: Option<u64>, launches: Option<f64>) -> Record {
    let mut record = record("memory", 1, implementation, &[5.0]);
    let workload = serde_json::json!({"workload": if peak.is_some() { "memory" } else { "launches" }, "of": of});
    record.workload = workload.as_object().unwrap().clone();
    record.rate = Some(Rate { value: 5.0, unit: Unit::Milliseconds });
    (record.peak_bytes, record.launches_per_token, record.of_roof, record.roof) = (peak, launches, None, None);
    record
}

fn beside_copy(mut record: Record) -> Record {
    record.copy_seconds = Some(8e-4);
    record
}

fn held_back(mut record: Record) -> Record {
    record.settings.clear();
    record
}

fn composed(mut record: Record) -> Record {
    record.workload.insert("reference".into(), true.into());
    record
}

fn records() -> Vec<Record> {
    let mut cuda = without(record("softmax", 1024, "cuda", &[]), Status::NotMeasured, "no such device here");
    cuda.device = Device { name: "none".into(), driver: "none".into(), kind: Kind::DiscreteGpu };
    vec![
        beside_copy(record("softmax", 1024, "flex", &[1.0, 1.0, 1.1])),
        record("softmax", 1024, "wgpu", &[9.0, 9.0, 9.0]),
        record("softmax", 1024, "pytorch", &[0.8, 0.8, 1.2]),
        record("softmax", 1024, "mlx", &[40.0, 41.0, 44.0]),
        cuda,
        record("softmax", 64, "flex", &[0.1, 0.15, 0.2]),
        held_back(record("softmax", 64, "pytorch", &[0.3, 0.3, 0.3])),
        without(record("softmax", 64, "mlx", &[]), Status::Refused, "ValueError: <no> | way"),
        without(record("softmax", 64, "peft", &[]), Status::NotMeasured, "softmax has no counterpart here"),
        without(record("copy", 1024, "peft", &[]), Status::NotMeasured, "copy has no counterpart here"),
        without(record("copy", 1024, "llama.cpp", &[]), Status::NotMeasured, "copy has no counterpart here"),
        step("flex", &[300.0, 300.0, 300.0]),
        step("peft", &[200.0, 210.0, 330.0]),
        record("copy", 1024, "flex", &[0.8, 0.8, 0.8]),
        composed(beside_copy(record("softmax", 1024, "flex", &[2.0, 2.0, 2.0]))),
        probe("load", "flex", Some(1_062_500_000), None),
        probe("token", "wgpu", None, Some(341.0)),
    ]
}

const CAUSES: &str =
    "[[cause]]\nworkload = \"softmax [*, 1024] f32\"\npeer = \"pytorch\"\nbecause = \"It never leaves the cache.\"\n";

#[test]
fn machines_of_one_name_are_told_apart_by_their_processors() {
    let mut all = records();
    assert!(render(&all, &Causes::default()).text.contains("## linux-2-cores\n"));
    all.push(record("softmax", 1024, "flex", &[1.0, 1.0, 1.1]));
    all.last_mut().unwrap().machine.cpu = "Zylinder *9*".into();
    let text = render(&all, &Causes::default()).text;
    assert!(
        text.contains("## linux-2-cores, AMD EPYC\n") && text.contains("## linux-2-cores, Zylinder \\*9\\*\n"),
        "{text}"
    );
}

#[test]
fn the_text_of_a_tiny_matrix_is_this() {
    let report = render(&records(), &CAUSES.parse().unwrap());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bench/report/golden.txt");
    if std::env::var_os("FIREBRICK_BLESS").is_some() {
        std::fs::write(path, &report.text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert!(
        report.text == golden,
        "the text is not golden.txt's; look at it, then keep it by FIREBRICK_BLESS=1\n{}",
        report.text
    );
}

#[test]
fn the_order_of_records_makes_no_difference() {
    let causes = CAUSES.parse().unwrap();
    let (mut turned, straight) = (records(), render(&records(), &causes));
    turned.reverse();
    // The first record of a machine says what the machine is.
    assert_eq!(render(&turned, &causes), straight);
}

#[test]
fn nothing_measured_is_said() {
    let report = render(&[], &Causes::default());
    assert!(report.text.contains("**Nothing has been measured yet**"), "{}", report.text);
    assert!(report.charts.values().all(|svg| svg.contains("nothing to draw has been measured yet")));
}

#[test]
fn charts_stand_alone_and_say_every_label() {
    let charts = render(&records(), &Causes::default()).charts;
    for (name, svg) in &charts {
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{name}: {svg}");
        let outside = ["href", "<script", "<image", "@import", "<style"].iter().find(|text| svg.contains(**text));
        assert_eq!(outside, None, "{name}");
    }
    for text in ["softmax [1024, 1024] f32", "0.700× peft", "0.800× pytorch", "linux-2-cores, flex on AMD EPYC (CPU)"]
    {
        assert!(charts["peers.svg"].contains(text), "{text}: {}", charts["peers.svg"]);
    }
    assert!(!charts["peers.svg"].contains("[1024, 64]"), "of a peer that was held back nothing is said");
    assert!(!charts["peers.svg"].contains("llvmpipe"), "a software device is compared with nobody");
    assert!(charts["roof.svg"].contains("software: imitates a GPU on the processor"));
}

#[test]
fn numbers_have_three_digits() {
    for (value, text) in [
        (0.001_234, "0.00123"),
        (0.9996, "1.00"),
        (1.0, "1.00"),
        (9.999, "10.0"),
        (123.4, "123"),
        (12_345.0, "12300"),
        (0.0, "0"),
    ] {
        assert_eq!(table::three(value), text);
    }
}
