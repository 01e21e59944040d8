//! A LoRA step (rank 8, q and v, AdamW) of a small decoder, on every backend built in. `Trainer::step` synchronises the device.

use std::time::Duration as Time;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use firebrick::core::train::data::Example;
use firebrick::prelude::*;

struct Train<'a>(&'a mut Criterion, BackendName);

impl Job for Train<'_> {
    type Output = ();

    fn run<B: TrainBackend>(self, device: B::Device) {
        let Self(criterion, name) = self;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny");
        let model = LanguageModel::<B>::load(folder, &device).expect("the bundled model loads");
        let mut group = criterion.benchmark_group(format!("train/{name}"));
        group.sample_size(20).measurement_time(Time::from_secs(8));
        for (what, weighted) in [("every token counts", 1usize), ("half the tokens count", 2)] {
            let example = |row: u32| Example {
                tokens: (0..257).map(|at| (at * 31 + row * 17) % 4000).collect(),
                weights: (0..257).map(|at| if at > 0 && at % weighted == 0 { 1.0 } else { 0.0 }).collect(),
                line: row as usize + 1,
            };
            let examples: Vec<Example> = (0..2).map(example).collect();
            let batch: Vec<&Example> = examples.iter().collect();
            let adapter = Adapter::create(model.valid().model(), &LoraConfig::default(), 0).expect("an adapter");
            let mut trainer = Trainer::new(model.model(), adapter, TrainConfig::default()).expect("a trainer");
            group.throughput(Throughput::Elements(512));
            group.bench_function(format!("LoRA step, 512 tokens, {what}"), |bencher| {
                bencher.iter(|| trainer.step(&batch, 1e-4).expect("a step"));
            });
        }
        group.finish();
    }
}

fn train(criterion: &mut Criterion) {
    for backend in built() {
        dispatch(backend, Train(criterion, backend)).expect("the backend is built in");
    }
}

criterion_group!(benches, train);
criterion_main!(benches);
