//! Figures: which are found, and which pass.

use super::*;

fn written(text: &str) -> Vec<String> {
    figures(text).into_iter().map(|figure| figure.written).collect()
}

#[test]
fn numbers_with_a_unit_are_found_and_no_others() {
    for (text, found) in [
        ("1.08 to 21.6 times as fast", vec!["1.08 times", "21.6 times"]),
        ("a binary of 13 MB, 69 MB with\n`candle`", vec!["13 MB", "69 MB"]),
        ("took 2.6\nminutes and 5,026 tokens/s", vec!["2.6 minutes", "5,026 tokens/s"]),
        (
            "of 10, 20 and 30 ms; 3× and 4.5x; 52 %, 75%",
            vec!["10 ms", "20 ms", "30 ms", "3 ×", "4.5 x", "52 %", "75 %"],
        ),
        ("`12 ms` [record](a/12 ms) <!-- 3 ms --> [64, 1024] 0.5B f16 5 sentences 1 to 100 texts", vec![]),
        ("of `[4096]`, 1.17 to 1.51 times", vec!["1.17 times", "1.51 times"]),
        ("256 positions, f16, 4.3 MB", vec!["4.3 MB"]),
        ("v1.2.3 s, x86 s, 2/3 s, 1.95 and 16,384 elements", vec![]),
        ("7.3 GB/s (6.1–8.2 GB/s), 2-second", vec!["7.3 GB/s", "6.1 GB/s", "8.2 GB/s", "2 second"]),
    ] {
        assert_eq!(written(text), found, "{text}");
    }
    assert_eq!(in_words("about four minutes, two\nseconds, five steps, three times as fast").count(), 3);
}

#[test]
fn digits_say_how_exact_a_figure_is() {
    for (digits, value, is) in [
        ("7.8", 7.75, true),
        ("7.7", 7.75, false),
        ("13", 12.845, true),
        ("4.80", 4.797, true),
        ("4.79", 4.797, false),
        ("5,026", 5026.0, true),
        ("0.1", 0.149_999, true),
        ("1", 1.5, false),
    ] {
        assert_eq!(Figure::rounds_to(digits, value), is, "{digits} {value}");
    }
    let edits = edits(&figures("1.5 ms")[0].digits);
    assert_eq!((edits.len(), edits[0].as_str(), edits[17].as_str()), (18, "0.5", "1.9"));
}

const RECORDS: &str = r#"{"workload": "softmax, [64, 1024]", "peer_seconds_over_ours": {"torch": 3.044, "mlx": 44.157}, "seconds": [24.9, 26.1]}
{"workload": "softmax, [4096, 4096]", "peer_seconds_over_ours": {"torch": 1.624, "mlx": 13.516}, "bytes": 12845464}
"#;

fn problems(path: &str, text: &str) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("benches/records")).unwrap();
    std::fs::write(root.path().join("benches/records/a.jsonl"), RECORDS).unwrap();
    std::fs::write(root.path().join("weights"), vec![0; 4_300_000]).unwrap();
    Checker::new(root.path()).document(Path::new(path), text).iter().map(Drift::to_string).collect()
}

#[test]
fn figures_of_markdown_are_those_of_their_record() {
    let link = "([record](benches/records/a.jsonl))";
    let with = |text: &str| problems("README.md", &format!("# Title\n\n{text}\n"));
    for right in [
        format!("A binary of 13 MB {link}."),
        format!(
            "1.6 to 3.0 times {link}.\n<!-- figures: min peer_seconds_over_ours.torch; max peer_seconds_over_ours.torch -->"
        ),
        format!("14 times {link}\n<!-- figures: only peer_seconds_over_ours.mlx of *[4096*|*[1, * -->"),
        format!("25.5 s and 13 MB {link}\n<!-- figures: median seconds; itself -->"),
        "Of 16 MB at most. <!-- figures: not measured -->".to_owned(),
        "Its 4.3 MB. <!-- figures: size weights -->".to_owned(),
        "No figure here: 5 rows, `12 ms`.".to_owned(),
        "```text\n12 ms\n```".to_owned(),
    ] {
        assert_eq!(with(&right), [""; 0], "{right}");
    }
    for (wrong, says) in [
        ("A binary of 13 MB.".to_owned(), "README.md:3: `13 MB` has no record"),
        (format!("A binary of 14 MB {link}."), "the nearest is 12.8455"),
        (format!("3.0 times {link}\n<!-- figures: min peer_seconds_over_ours.torch -->"), "it is 1.624 in that unit"),
        (format!("4.2 GB/s {link}"), "nothing in that unit"),
        (format!("3.0 times {link}\n<!-- figures: min torch -->"), "no `torch`, but"),
        (format!("3.0 times {link}\n<!-- figures: min seconds of rope -->"), "no workload is rope"),
        (format!("3.0 times {link}\n<!-- figures: min seconds -->"), "not counted in that unit"),
        (format!("3.0 times {link}\n<!-- figures: only peer_seconds_over_ours.torch -->"), "has 2 values"),
        (format!("3.0 times {link}\n<!-- figures: best torch -->"), "is no query"),
        (format!("3.0 times {link}\n<!-- figures: itself; itself -->"), "1 figures (3.0 times), and 2 queries"),
        (format!("25 s {link}"), "also has 26 in that unit"),
        ("3.0 times ([record](benches/records/b.jsonl))".to_owned(), "b.jsonl"),
        ("It takes four minutes.".to_owned(), "`four minutes`: write it in digits"),
        ("Its 4.4 MB.\n<!-- figures: size weights -->".to_owned(), "it is 4.3 in that unit"),
    ] {
        let found = with(&wrong).join("\n");
        assert!(found.contains(says), "{wrong}: {found}");
    }
}

#[test]
fn doc_comments_may_have_limits_but_no_speed_without_a_record() {
    let with = |text: &str| problems("src/a.rs", text).len();
    assert_eq!(with("/// At most 16 MB, 5 times, within 30 s.\n"), 0);
    assert_eq!(with("/// It runs 3 times as fast.\n"), 1);
    assert_eq!(with("//! Reads 7 GB/s.\n"), 1);
    assert_eq!(with("let a = 3; // 7 GB/s\n"), 0);
    assert_eq!(with("/// A binary of 13 MB (`benches/records/a.jsonl`).\n"), 0);
    assert_eq!(with("/// A binary of 15 MB (`benches/records/a.jsonl`).\n///\n/// At most 3 MB.\n"), 1);
    assert_eq!(with("/// It runs 1.6 times as fast (`benches/records/a.jsonl`).\n"), 0);
}
