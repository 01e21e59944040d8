//! Prefill and decode of a small decoder, on every backend built in. The device has finished before the clock stops.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use firebrick::core::sequence::Segments;
use firebrick::prelude::*;

struct Decode<'a>(&'a mut Criterion, BackendName);

impl Job for Decode<'_> {
    type Output = ();

    fn run<B: TrainBackend>(self, device: B::Device) {
        let Self(criterion, name) = self;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny");
        let model = LanguageModel::<B::InnerBackend>::load(folder, &device).expect("the bundled model loads");
        let model = model.model();
        let mut group = criterion.benchmark_group(format!("decode/{name}"));
        for context in [16usize, 256] {
            let prompt: Vec<u32> = (0..context as u32).collect();
            group.throughput(Throughput::Elements(context as u64));
            group.bench_function(format!("prefill {context} tokens, last logits"), |bencher| {
                bencher.iter(|| {
                    let hidden = model.hidden(&Sequences::whole(&[&prompt], &device), None);
                    // Reading the logits waits for the device.
                    model.head(hidden.narrow(0, context - 1, 1)).into_data()
                });
            });
            group.throughput(Throughput::Elements(1));
            group.bench_function(format!("one token after {context}"), |bencher| {
                let mut cache = model.new_cache(1, context + 1);
                model.hidden(&Sequences::whole(&[&prompt], &device), Some(&mut cache));
                let mut token = 0;
                bencher.iter(|| {
                    cache.truncate(0, context);
                    token = (token + 1) % 4000;
                    let tokens = Sequences::new(&[token], Segments::continuing([(1, context)]), &device);
                    model.head(model.hidden(&tokens, Some(&mut cache))).into_data()
                });
            });
        }
        group.finish();
    }
}

fn decode(criterion: &mut Criterion) {
    for backend in built() {
        dispatch(backend, Decode(criterion, backend)).expect("the backend is built in");
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
