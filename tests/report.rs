//! What documents say was measured is what the records say: `benches/README.md` and its charts whole, every figure elsewhere by itself.
#![cfg(feature = "bench")]

use std::path::Path;

use firebrick::bench::report;

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
