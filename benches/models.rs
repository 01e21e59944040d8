//! Parts of models, whole models, a training step, on each backend. `cargo bench --bench models -- embed` picks by name; without
//! `--full` it is a choice that takes a minute on a CPU.

mod support;

use firebrick::bench::workload::all;

fn main() {
    support::time(|workload, full| !workload.is_kernel() && (full || all(false).contains(workload)));
}
