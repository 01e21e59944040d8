//! `bench`: what it times, what it prints and records, and the report that is made of records.

use std::fs;

use serde_json::Value;

use crate::command::run;

#[test]
fn a_workload_is_timed_printed_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("benches/records");
    fs::create_dir_all(&records).unwrap();
    let words = format!("bench --only rope --rounds 3 --backend flex --json --record {}", records.display());
    let printed = run(&words, &[]).ok().out;
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{printed}");
    let record = &lines[0];
    assert_eq!((&record["workload"]["workload"], &record["implementation"]), (&"rope".into(), &"flex".into()));
    // Whether it is measured or, on a machine as busy as this may be, refused: there is a figure or a reason.
    match record["status"].as_str().unwrap() {
        "measured" => {
            assert_eq!(record["samples"].as_array().unwrap().len(), 3);
            assert_eq!(record["rate"]["unit"], "GB/s");
            assert!(record["of_roof"].as_f64().unwrap() <= 1.0);
        }
        _ => assert!(!record["reason"].as_str().unwrap().is_empty()),
    }
    let file = records.read_dir().unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_to_string(&file).unwrap(), printed);

    let root = folder.path().display();
    assert_eq!(run(&format!("bench report --check {root}"), &[]).status, 1, "there is no report yet");
    run(&format!("bench report {root}"), &[]).ok();
    let report = fs::read_to_string(folder.path().join("benches/README.md")).unwrap();
    assert!(report.contains("rope"), "{report}");
    run(&format!("bench report --check {root}"), &[]).ok();
}

#[test]
fn the_list_names_every_workload_and_measures_none() {
    let (quick, full) = (run("bench --list", &[]).ok().out, run("bench --list --full", &[]).ok().out);
    assert!(full.lines().count() > 100 && quick.lines().count() < 30, "{quick}");
    assert!(quick.lines().all(|line| full.contains(line)));
    let error = run("bench --only nonsense", &[]).error();
    assert!(error.contains("no workload contains nonsense") && error.contains("--list"), "{error}");
}

#[test]
fn peers_are_found_in_a_checkout_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = crate::command::binary();
    let output = command.args(["bench", "--peers", "--only", "rope"]).current_dir(folder.path()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("checkout"), "{error}");
}

#[test]
fn what_a_process_tells_of_itself_is_json() {
    let found: Value = serde_json::from_str(&run("bench --probe cache --backend flex", &[]).ok().out).unwrap();
    let Some(bytes) = found["bytes"].as_u64().filter(|_| cfg!(target_os = "linux")) else { return };
    // 24 layers of keys and values, 2,048 tokens, 2 heads of 64, f32.
    let expected = 24 * 2 * 2048 * 2 * 64 * 4;
    assert!((expected..expected + expected / 4).contains(&bytes), "{bytes} instead of {expected}");
}
