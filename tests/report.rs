//! What documents say was measured is what the records say: `benches/README.md` and its charts whole, every figure elsewhere by itself.
#![cfg(feature = "bench")]

use std::path::Path;

use firebrick::bench::{drift, report};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_report_is_what_the_records_say() {
    let root = Path::new(ROOT);
    if std::env::var_os("FIREBRICK_BLESS").is_some() {
        report::write(root).unwrap();
    }
    let outdated = report::outdated(root).unwrap();
    let names: Vec<_> = outdated.keys().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect();
    assert!(names.is_empty(), "{names:?} are not what benches/records says; render them anew with FIREBRICK_BLESS=1");
}

#[test]
fn every_figure_in_a_document_is_its_record_s() {
    let found: Vec<String> = drift::check(Path::new(ROOT)).unwrap().iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "figures and records differ:\n{}", found.join("\n"));
}

#[test]
fn a_figure_edited_by_hand_is_noticed() {
    let root = Path::new(ROOT);
    let checker = drift::Checker::new(root);
    // The first two may have none but in what is rendered; one that they get is watched.
    for (document, least) in [("README.md", 0), ("benches/profiles/README.md", 0), ("examples/tiny/README.md", 3)] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let figures = drift::figures_of(&text);
        assert!(figures.len() >= least, "{document}: only {} figures were found in it", figures.len());
        for (at, figure) in figures {
            for edited in drift::edits(&figure) {
                let copy = format!("{}{edited}{}", &text[..at], &text[at + figure.len()..]);
                let found = checker.document(Path::new(document), &copy);
                assert!(!found.is_empty(), "{document}: {figure} at byte {at} became {edited}, and nobody noticed");
            }
        }
    }
}

#[test]
fn a_report_edited_by_hand_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("benches/records")).unwrap();
    let readme = folder.path().join("README.md");
    std::fs::write(&readme, format!("before\n{}measured\n{}after\n", report::SUMMARY[0], report::SUMMARY[1])).unwrap();
    let written = report::write(folder.path()).unwrap();
    assert_eq!(written.len(), 4, "two pages and two charts: {written:?}");
    let made = std::fs::read_to_string(&readme).unwrap();
    assert!(made.starts_with("before\n") && made.ends_with("after\n") && !made.contains("measured"), "{made}");
    std::fs::write(&readme, made.replace(report::SUMMARY[1], &format!("measured\n{}", report::SUMMARY[1]))).unwrap();
    assert_eq!(report::write(folder.path()).unwrap(), std::slice::from_ref(&readme));
    let written: Vec<_> = written.into_iter().filter(|path| *path != readme).collect();
    assert!(report::outdated(folder.path()).unwrap().is_empty());
    for path in written {
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("measured", "dreamt", 1)).unwrap();
        assert_eq!(report::outdated(folder.path()).unwrap().keys().collect::<Vec<_>>(), [&path]);
        assert_eq!(report::write(folder.path()).unwrap(), [path]);
    }
}
