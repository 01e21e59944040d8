//! Each op on each backend, fused and composed of Burn's own ops, beside a copy of as many bytes.
//! `cargo bench --bench kernels -- rms_norm` picks by name.

mod support;

use std::collections::BTreeMap;

use firebrick::bench::record::Record;
use serde_json::Value;

fn main() {
    let records = support::time(|workload, _| workload.is_kernel());
    println!("\nbytes read and written, and that as a share of a copy of a tensor of that size in this run:");
    let size = |record: &Record, name: &str| record.workload.get(name).and_then(Value::as_u64);
    let mut copies = BTreeMap::new();
    for record in &records {
        let (Some(rows), Some(width)) = (size(record, "rows"), size(record, "width")) else { continue };
        let Some(rate) = &record.rate else { continue };
        let key = (record.implementation.clone(), rows, width);
        if record.kind() == "copy" {
            copies.insert(key, rate.value);
        } else if let Some(copy) = copies.get(&key) {
            let share = rate.value / copy * 100.0;
            let (label, backend, value) = (record.label(), &record.implementation, rate.value);
            println!("{label:<44} {backend:<13} {value:>8.2} GB/s {share:>6.0} % of a copy");
        }
    }
}
