//! The same inputs give the same bits: run after run, and on any number of threads, or a training run could not be repeated.

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use super::add_layer_norm::add_layer_norm;
use super::add_rms_norm::add_rms_norm;
use super::attention::{AttentionLayout, Span, attention};
use super::cross_entropy::{Targets, cross_entropy_of_linear};
use super::gelu::gelu;
use super::layer_norm::layer_norm;
use super::linear::linear;
use super::linears::linears;
use super::lora_linear::lora_linear;
use super::oracle::{Array, View, on_every_backend, read};
use super::rms_norm::rms_norm;
use super::rope::rope_into;
use super::softmax::softmax;
use super::swiglu::swiglu;
use super::{primitive, tensor};
use crate::{KernelBackend, TrainBackend};

fn random<B: KernelBackend, const D: usize>(
    device: &B::Device,
    seed: u64,
    shape: [usize; D],
    dtype: DType,
) -> Tensor<B, D> {
    tensor(Array::random(seed, &shape).stored(dtype).on::<B>(device, dtype, View::Plain))
}

/// A small transformer block, its loss, and the gradients of its trained tensors: every op and every gradient, in sizes that use
/// all threads. The bits, in order.
fn block<B: TrainBackend>(device: &B::Device, stored: DType) -> Vec<u64> {
    let (tokens, hidden, heads, kv_heads, dim, wide, vocabulary) = (150, 192, 6, 2, 32, 700, 1000);
    let frozen = |seed, shape: [usize; 2]| random::<B, 2>(device, seed, shape, stored);
    let trained = |seed, shape: [usize; 2]| random::<B, 2>(device, seed, shape, DType::F32).require_grad();
    let weight = |seed, size: usize| random::<B, 1>(device, seed, [size], DType::F32).require_grad();
    let x = trained(1, [tokens, hidden]);
    let (norm, scale, shift) = (weight(2, hidden), weight(3, hidden), weight(4, hidden));
    let [q_proj, kv_proj] = [trained(5, [heads * dim, hidden]), trained(6, [kv_heads * dim, hidden])];

    let normed = rms_norm(x.clone(), norm.clone(), 1e-6);
    let [q, kv] = linears(normed, [(q_proj.clone(), None), (kv_proj.clone(), None)]);
    let (q, kv) = (q.reshape([tokens, heads, dim]), kv.reshape([tokens, kv_heads, dim]));
    let span = |start, len| Span { query_start: start, query_len: len, key_start: start, key_len: len };
    let spans = [span(0, 100), span(100, tokens - 100)].into();
    let layout = AttentionLayout { spans, causal: true, window: None, scale: 0.2 };
    let mixed = attention(q, kv.clone(), kv, &layout).reshape([tokens, heads * dim]);
    let h = layer_norm(x.clone() + mixed, scale.clone(), shift.clone(), 1e-5);
    let gate = gelu(linear(h.clone(), frozen(7, [wide, hidden]), None), None);
    let up = linear(h.clone(), frozen(8, [wide, hidden]), None);
    let down = linear(swiglu(gate, up.clone()), frozen(9, [hidden, wide]), Some(shift.clone()));
    let adapter = [trained(13, [4, wide]), trained(14, [hidden, 4])];
    let adapted = lora_linear(up, None, frozen(15, [hidden, wide]), None, adapter.clone(), 2.0);
    let (h, normed) = add_rms_norm(softmax(down, 1.5, None), h + adapted, norm.clone(), 1e-6);
    let h = add_layer_norm(gelu(normed, Some(shift.clone())), h, scale.clone(), shift.clone(), 1e-5);
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 6).collect();
    let targets = Targets::new(ids, vec![0.5; tokens]);
    let loss = cross_entropy_of_linear(h.clone(), frozen(10, [vocabulary, hidden]), &targets);

    let mut results: Vec<FloatTensor<B::InnerBackend>> = vec![primitive(h.inner()), primitive(loss.clone().inner())];
    let grads = loss.backward();
    results.extend([&x, &q_proj, &kv_proj].map(|t| primitive(t.grad(&grads).unwrap())));
    results.extend(adapter.map(|t| primitive(t.grad(&grads).unwrap())));
    results.extend([&norm, &scale, &shift].map(|t| primitive(t.grad(&grads).unwrap())));
    // One row at a time takes another path.
    let row = random::<B::InnerBackend, 2>(device, 11, [1, hidden], DType::F32);
    results.push(primitive(linear(row.clone(), random(device, 12, [wide * 2, hidden], stored), None)));
    let trained = |seed, shape: [usize; 2]| random::<B::InnerBackend, 2>(device, seed, shape, DType::F32);
    let (weight, adapter) =
        (random(device, 16, [wide, hidden], stored), [trained(17, [4, hidden]), trained(18, [wide, 4])]);
    results.push(primitive(lora_linear(row.clone(), None, weight, None, adapter, 2.0)));
    // A token behind a cache: its key is appended, and its query answered.
    let cache = random::<B::InnerBackend, 3>(device, 19, [400, kv_heads, dim], DType::F32);
    let (key, query) = (row.clone().narrow(1, 0, kv_heads * dim), row.reshape([1, heads, dim]));
    let (cos, sin) = (trained(20, [1, dim / 2]), trained(21, [1, dim / 2]));
    let keys = rope_into(cache.clone(), key.reshape([1, kv_heads, dim]), cos, sin, 307);
    let spans = [Span { query_start: 0, query_len: 1, key_start: 0, key_len: 308 }].into();
    let layout = AttentionLayout { spans, causal: true, window: None, scale: 0.2 };
    results.push(primitive(attention(query, keys.clone(), cache, &layout)));
    results.push(primitive(keys));
    results.into_iter().flat_map(|result| read::<B::InnerBackend>(result).values).map(f64::to_bits).collect()
}

fn every_run_gives_the_same_bits<B: TrainBackend>(device: &B::Device) {
    for stored in [DType::F32, DType::BF16].into_iter().filter(|&dtype| B::supports_dtype(device, dtype)) {
        let first = block::<B>(device, stored);
        assert!(first.iter().all(|&bits| f64::from_bits(bits).is_finite()));
        for _ in 0..2 {
            let again = block::<B>(device, stored);
            let differing: Vec<usize> = (0..first.len()).filter(|&at| again[at] != first[at]).collect();
            assert!(
                differing.is_empty(),
                "{stored:?}: {} of {} values, the first {:?}",
                differing.len(),
                first.len(),
                differing[0]
            );
        }
    }
}

on_every_backend!(every_run_gives_the_same_bits);

#[test]
#[cfg(feature = "flex")]
fn flex_gives_the_same_bits_on_any_number_of_threads() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| block::<Autodiff<burn_flex::Flex>>(&Default::default(), DType::BF16))
    };
    let one = on(1);
    for threads in [2, 3, 8] {
        let differing = on(threads).iter().zip(&one).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 0, "of {} values with {threads} threads", one.len());
    }
}
