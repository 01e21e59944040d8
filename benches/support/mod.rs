//! Workloads of `firebrick::bench` under criterion, which compares with its last run: on every backend that was built in, with the same
//! checks and the same records as by `firebrick bench`.
//!
//! Arguments after `--`: `--full` for every workload, `--record FOLDER`, and texts of which a workload's name must contain one.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use firebrick::backend::select::{built, devices};
use firebrick::bench::record::{self, Record, Status};
use firebrick::bench::run::{Base, Roofs, enter};
use firebrick::bench::subject::Models;
use firebrick::bench::workload::{Workload, all};

/// Samples of each workload.
const SAMPLES: usize = 10;

/// Times the workloads that `wanted` takes, with and without `--full`, and gives back their records.
pub fn time(wanted: fn(&Workload, bool) -> bool) -> Vec<Record> {
    let (mut full, mut only, mut folder) = (false, Vec::new(), None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--full" => full = true,
            "--record" => folder = words.next(),
            // Cargo's own.
            "--bench" => {}
            text => only.push(text.to_owned()),
        }
    }
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    let (base, roofs, mut records) = (Base::now(), RefCell::new(Roofs::default()), Vec::new());
    for workload in all(true).iter().filter(|workload| wanted(workload, full)) {
        let label = record::label(&workload.describe());
        if !only.is_empty() && !only.iter().any(|part| label.contains(part.as_str())) {
            continue;
        }
        for backend in built() {
            let device = devices(backend).into_iter().next();
            let record = match enter(&base, workload, backend, device.as_ref(), &Models::default(), &roofs) {
                Err(record) => *record,
                Ok(mut entry) => match entry.check() {
                    Err(record) => *record,
                    Ok(()) => {
                        let mut samples = Vec::new();
                        let mut group = criterion.benchmark_group(&label);
                        group.throughput(throughput(workload));
                        group.bench_function(backend.to_string(), |bencher| {
                            bencher.iter_custom(|calls| {
                                let seconds = entry.sample(calls as usize).expect("it was checked");
                                samples.push((seconds / calls as f64, calls as usize));
                                Duration::from_secs_f64(seconds)
                            });
                        });
                        group.finish();
                        // Those before are criterion's warm-up.
                        let last = samples.split_off(samples.len().saturating_sub(SAMPLES));
                        let calls = last.first().map_or(1, |(_, calls)| *calls);
                        entry.conclude(last.into_iter().map(|(seconds, _)| seconds).collect(), calls)
                    }
                },
            };
            if let (false, Some(reason)) = (record.status == Status::Measured, &record.reason) {
                println!("{label}/{backend}: {}: {reason}", record.status.name());
            }
            if let Some(folder) = &folder {
                let file = Path::new(folder).join(record::name_of_file(&record));
                record::append(&file, std::slice::from_ref(&record)).expect("the record is written");
            }
            records.push(record);
        }
    }
    criterion.final_summary();
    records
}

fn throughput(workload: &Workload) -> Throughput {
    let cost = workload.cost();
    match (cost.tokens, cost.operations) {
        (0, 0) => Throughput::Bytes(cost.bytes as u64),
        (0, operations) => Throughput::Elements(operations as u64),
        (tokens, _) => Throughput::Elements(tokens as u64),
    }
}
