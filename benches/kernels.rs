//! How fast each hot op runs on each backend that was built, beside the bytes it must move or the operations it must do.
//! `cargo bench --bench kernels -- rms_norm` picks by name. Whole models are not measured here.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use firebrick_backend::ops::add_layer_norm::{self, add_layer_norm};
use firebrick_backend::ops::add_rms_norm::{self, add_rms_norm};
use firebrick_backend::ops::attention::{AttentionLayout, Span, attention};
use firebrick_backend::ops::cross_entropy::{Targets, cross_entropy_of_linear};
use firebrick_backend::ops::gelu::{self, gelu};
use firebrick_backend::ops::layer_norm::{self, layer_norm};
use firebrick_backend::ops::linear::linear;
use firebrick_backend::ops::rms_norm::{self, rms_norm};
use firebrick_backend::ops::rope::rope;
use firebrick_backend::ops::softmax::{self, softmax};
use firebrick_backend::ops::swiglu::{self, swiglu};
use firebrick_backend::ops::write_rows::write_rows;
use firebrick_backend::select::{BackendName, Job, built, dispatch};
use firebrick_backend::{KernelBackend, TrainBackend};

/// Bytes of an f32.
const F32: usize = 4;

/// The heads of Qwen2.5-0.5B: 14 query heads over 2 key-value heads of 64.
const HEADS: [usize; 3] = [14, 2, 64];

/// Its hidden and its intermediate size.
const MLP: [usize; 2] = [896, 4864];

struct Kernels<'c> {
    criterion: &'c mut Criterion,
    backend: BackendName,
}

impl Job for Kernels<'_> {
    type Output = ();

    fn run<B: TrainBackend>(self, device: B::Device) {
        let mut bench = Bench::<B::InnerBackend> { criterion: self.criterion, backend: self.backend, device };
        bench.rows();
        bench.linears();
        bench.attentions();
        bench.cache_and_loss();
    }
}

struct Bench<'c, B: KernelBackend> {
    criterion: &'c mut Criterion,
    backend: BackendName,
    device: B::Device,
}

impl<B: KernelBackend> Bench<'_, B> {
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<B, D> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &self.device)
    }

    /// Times `op`; the clock stops when the device has finished.
    fn time<T>(&mut self, name: &str, case: &str, throughput: Throughput, mut op: impl FnMut() -> T) {
        let device = self.device.clone();
        let mut group = self.criterion.benchmark_group(name);
        group.throughput(throughput);
        group.bench_function(BenchmarkId::new(self.backend.to_string(), case), |bencher| {
            bencher.iter(|| {
                let result = black_box(op());
                B::sync(&device).expect("the device finishes");
                result
            });
        });
        group.finish();
    }

    /// Times an op, and under `NAME/reference` the same in Burn's own ops.
    fn beside<T, U>(
        &mut self,
        name: &str,
        case: &str,
        throughput: Throughput,
        op: impl FnMut() -> T,
        reference: impl FnMut() -> U,
    ) {
        self.time(name, case, throughput.clone(), op);
        self.time(&format!("{name}/reference"), case, throughput, reference);
    }

    /// Ops on rows: the bytes read and written. No op can be faster than a copy of as many bytes, which is timed first.
    fn rows(&mut self) {
        for shape @ [rows, width] in [[64, 1024], [1024, 1024], [4096, 4096], [1, 896], [512, 896]] {
            let case = format!("{rows}x{width}");
            let moved = |tensors: usize| Throughput::Bytes((tensors * rows * width * F32) as u64);
            let (x, y) = (self.random(shape), self.random(shape));
            let (weight, bias) = (self.random([width]), self.random([width]));
            let matrix = |t: &Tensor<B, 2>| -> FloatTensor<B> { black_box(t.clone()).into_primitive().tensor() };
            let vector = |t: &Tensor<B, 1>| -> FloatTensor<B> { t.clone().into_primitive().tensor() };
            let (of_x, of_y) = (|| black_box(x.clone()), || black_box(y.clone()));
            let (scale, shift) = (|| weight.clone(), || bias.clone());
            // Read, multiplied and written: backends copy by sharing.
            self.time("copy", &case, moved(2), || of_x() * 1.5);
            self.beside(
                "rms_norm",
                &case,
                moved(2),
                || rms_norm(of_x(), scale(), 1e-6),
                || rms_norm::reference::<B>(matrix(&x), vector(&weight), 1e-6),
            );
            self.beside(
                "add_rms_norm",
                &case,
                moved(4),
                || add_rms_norm(of_x(), of_y(), scale(), 1e-6),
                || add_rms_norm::reference::<B>(matrix(&x), matrix(&y), vector(&weight), 1e-6),
            );
            self.beside(
                "layer_norm",
                &case,
                moved(2),
                || layer_norm(of_x(), scale(), shift(), 1e-6),
                || layer_norm::reference::<B>(matrix(&x), vector(&weight), vector(&bias), 1e-6),
            );
            self.beside(
                "add_layer_norm",
                &case,
                moved(3),
                || add_layer_norm(of_x(), of_y(), scale(), shift(), 1e-6),
                || add_layer_norm::reference::<B>(matrix(&x), matrix(&y), vector(&weight), vector(&bias), 1e-6),
            );
            self.beside(
                "softmax",
                &case,
                moved(2),
                || softmax(of_x(), 1.0, None),
                || softmax::reference::<B>(matrix(&x), 1.0, None),
            );
            self.beside(
                "swiglu",
                &case,
                moved(3),
                || swiglu(of_x(), of_y()),
                || swiglu::reference::<B>(matrix(&x), matrix(&y)),
            );
            self.beside(
                "gelu",
                &case,
                moved(2),
                || gelu(of_x(), Some(shift())),
                || gelu::reference::<B>(matrix(&x), Some(vector(&bias))),
            );
        }
        let [heads, _, dim] = HEADS;
        for tokens in [1, 512] {
            let x = self.random([tokens, heads, dim]);
            let (cos, sin) = (self.random([tokens, dim / 2]), self.random([tokens, dim / 2]));
            let moved = Throughput::Bytes((2 * tokens * heads * dim * F32) as u64);
            let case = format!("{tokens}x{heads}x{dim}");
            self.time("rope", &case, moved, || rope(black_box(x.clone()), cos.clone(), sin.clone()));
        }
    }

    /// One row moves the weight's bytes; many rows do two operations for each weight.
    fn linears(&mut self) {
        let [inputs, outputs] = MLP;
        for (dtype, name) in [(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")] {
            if !B::supports_dtype(&self.device, dtype) {
                continue;
            }
            let weight = self.random([outputs, inputs]).cast(dtype);
            for rows in [1, 512] {
                let x = self.random([rows, inputs]);
                let throughput = match rows {
                    1 => Throughput::Bytes((outputs * inputs * dtype.size()) as u64),
                    _ => Throughput::Elements((2 * rows * outputs * inputs) as u64),
                };
                let case = format!("{rows}x{inputs}x{outputs}-{name}");
                self.time("linear", &case, throughput, || linear(black_box(x.clone()), weight.clone(), None));
            }
        }
    }

    /// Four operations for each pair of a query and a key it sees, head and feature.
    fn attentions(&mut self) {
        let [heads, kv_heads, dim] = HEADS;
        for (case, queries, keys) in [("decode-1x1024", 1, 1024), ("prefill-512", 512, 512)] {
            let q = self.random([queries, heads, dim]);
            let (k, v) = (self.random([keys, kv_heads, dim]), self.random([keys, kv_heads, dim]));
            let span = Span { query_start: 0, query_len: queries, key_start: 0, key_len: keys };
            let scale = 1.0 / (dim as f64).sqrt();
            let layout = AttentionLayout { spans: [span].into(), causal: true, window: None, scale };
            let pairs: usize = (0..queries).map(|query| layout.visible(&span, query).len()).sum();
            let operations = Throughput::Elements((4 * pairs * heads * dim) as u64);
            self.time("attention", case, operations, || {
                attention(black_box(q.clone()), black_box(k.clone()), black_box(v.clone()), &layout)
            });
        }
    }

    fn cache_and_loss(&mut self) {
        let [_, kv_heads, dim] = HEADS;
        let mut cache = Some(self.random([4096, kv_heads, dim]));
        let rows = self.random([1, kv_heads, dim]);
        let moved = Throughput::Bytes((2 * kv_heads * dim * F32) as u64);
        self.time("write_rows", "1-into-4096", moved, || {
            // The only handle goes in and comes back: nothing but the row is copied.
            cache = cache.take().map(|cache| write_rows(cache, black_box(rows.clone()), 2048));
        });

        let (rows, inputs, vocabulary) = (64, MLP[0], 32_768);
        let (hidden, head) = (self.random([rows, inputs]), self.random([vocabulary, inputs]));
        let ids: Vec<u32> = (0..rows as u32).map(|row| row * 499).collect();
        let targets = Targets::new(ids, vec![1.0; rows]);
        let operations = Throughput::Elements((2 * rows * inputs * vocabulary) as u64);
        self.time("cross_entropy_of_linear", "64x896x32768", operations, || {
            cross_entropy_of_linear(black_box(hidden.clone()), head.clone(), &targets)
        });
    }
}

fn kernels(criterion: &mut Criterion) {
    for backend in built() {
        dispatch(backend, Kernels { criterion, backend }).expect("what `built` lists can be run");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = kernels
}
criterion_main!(benches);
