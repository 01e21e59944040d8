//! The gradients written by hand beside those that Burn's autodiff takes through each op's reference: whole, in f32 and f64.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, Slice, Tensor, TensorMetadata};

use super::attention::{AttentionLayout, Span};
use super::cross_entropy::Targets;
use super::oracle::{Array, View, compare, dtypes, on_every_backend, read, stacked};
use super::{
    add_layer_norm, add_rms_norm, attention, gelu, layer_norm, linear, primitive, rms_norm, rope, softmax, swiglu,
    tensor,
};
use crate::TrainBackend;

const EPSILON: f64 = 1e-6;

/// Compares `op` with `reference` in their values and in the gradients of the first `tracked` of inputs of these shapes.
#[track_caller]
fn same<B: TrainBackend, const N: usize>(
    device: &B::Device,
    name: &str,
    (shapes, tracked): ([&[usize]; N], usize),
    op: impl Fn([FloatTensor<B>; N]) -> FloatTensor<B>,
    reference: impl Fn([FloatTensor<B>; N]) -> FloatTensor<B>,
) {
    let mut seed = 0;
    let inputs = shapes.map(|shape| {
        seed += 1;
        Array::random(seed, shape).map(|v| v * 2.0)
    });
    for dtype in dtypes::<B>() {
        let results = |op: &dyn Fn([FloatTensor<B>; N]) -> FloatTensor<B>| {
            let mut at = 0;
            let tensors = inputs.each_ref().map(|input| {
                at += 1;
                B::float_set_require_grad(input.on::<B>(device, dtype, View::Plain), at <= tracked)
            });
            let output = op(tensors.clone());
            let factors = Array::random(99, &output.shape().to_vec()).on::<B>(device, dtype, View::Plain);
            let grads = B::backward(B::float_sum(B::float_mul(output.clone(), factors)));
            let mut arrays = vec![read::<B>(output)];
            for tensor in &tensors[..tracked] {
                arrays.push(read::<B::InnerBackend>(B::grad(tensor, &grads).expect("a gradient")));
            }
            arrays
        };
        let tolerance = if dtype == DType::F64 { 1e-10 } else { 5e-5 };
        for (at, (ours, theirs)) in results(&op).iter().zip(&results(&reference)).enumerate() {
            compare(&format!("{name} in {dtype:?}, value and gradients [{at}]"), ours, theirs, tolerance);
        }
    }
}

fn those_of_norms_are_autodiffs_through_the_reference<B: TrainBackend>(device: &B::Device) {
    for [rows, width] in [[3, 5], [17, 896], [2, 1025]] {
        let (x, w) = (&[rows, width][..], &[width][..]);
        same::<B, 2>(
            device,
            "rms_norm",
            ([x, w], 2),
            |[x, w]| B::rms_norm(x, w, EPSILON),
            |[x, w]| rms_norm::reference::<B>(x, w, EPSILON),
        );
        same::<B, 3>(
            device,
            "add_rms_norm",
            ([x, x, w], 3),
            |[x, r, w]| {
                let (sum, normed) = B::add_rms_norm(x, r, w, EPSILON);
                stacked::<B>(sum, normed)
            },
            |[x, r, w]| {
                let (sum, normed) = add_rms_norm::reference::<B>(x, r, w, EPSILON);
                stacked::<B>(sum, normed)
            },
        );
        same::<B, 3>(
            device,
            "layer_norm",
            ([x, w, w], 3),
            |[x, w, b]| <B as crate::KernelBackend>::layer_norm(x, w, b, EPSILON),
            |[x, w, b]| layer_norm::reference::<B>(x, w, b, EPSILON),
        );
        same::<B, 4>(
            device,
            "add_layer_norm",
            ([x, x, w, w], 4),
            |[x, r, w, b]| B::add_layer_norm(x, r, w, b, EPSILON),
            |[x, r, w, b]| add_layer_norm::reference::<B>(x, r, w, b, EPSILON),
        );
    }
}

fn those_of_element_ops_are_autodiffs_through_the_reference<B: TrainBackend>(device: &B::Device) {
    for [rows, width] in [[3, 5], [17, 896], [2, 1025]] {
        let (x, w) = (&[rows, width][..], &[width][..]);
        same::<B, 2>(
            device,
            "softmax",
            ([x, x], 1),
            |[x, mask]| <B as crate::KernelBackend>::softmax(x, 0.5, Some(mask)),
            |[x, mask]| softmax::reference::<B>(x, 0.5, Some(mask)),
        );
        same::<B, 2>(
            device,
            "swiglu",
            ([x, x], 2),
            |[gate, up]| B::swiglu(gate, up),
            |[gate, up]| swiglu::reference::<B>(gate, up),
        );
        same::<B, 2>(
            device,
            "gelu",
            ([x, w], 2),
            |[x, b]| <B as crate::KernelBackend>::gelu(x, Some(b)),
            |[x, b]| gelu::reference::<B>(x, Some(b)),
        );
    }
    let (x, table, target) = (&[5, 3, 8][..], &[5, 4][..], &[9, 3, 8][..]);
    same::<B, 3>(
        device,
        "rope",
        ([x, table, table], 1),
        |[x, cos, sin]| B::rope(x, cos, sin),
        |[x, cos, sin]| rope::reference::<B>(x, cos, sin),
    );
    let normed = |x, weight| rms_norm::reference::<B>(x, weight, EPSILON);
    same::<B, 4>(
        device,
        "norm_rope",
        ([x, &[8], table, table], 2),
        |[x, weight, cos, sin]| B::norm_rope(x, weight, EPSILON, cos, sin),
        |[x, weight, cos, sin]| rope::reference::<B>(normed(x, weight), cos, sin),
    );
    let rows = [Slice::from(2..7), Slice::from(0..3), Slice::from(0..8)];
    same::<B, 5>(
        device,
        "norm_rope_into",
        ([target, x, &[8], table, table], 3),
        |[target, x, weight, cos, sin]| B::norm_rope_into(target, x, weight, EPSILON, cos, sin, 2),
        |[target, x, weight, cos, sin]| {
            B::float_slice_assign(target, &rows, rope::reference::<B>(normed(x, weight), cos, sin))
        },
    );
    same::<B, 4>(
        device,
        "rope_into",
        ([target, x, table, table], 2),
        |[target, x, cos, sin]| B::rope_into(target, x, cos, sin, 2),
        |[target, x, cos, sin]| B::float_slice_assign(target, &rows, rope::reference::<B>(x, cos, sin)),
    );
    same::<B, 2>(
        device,
        "write_rows",
        ([target, x], 2),
        |[target, x]| B::write_rows(target, x, 2),
        |[target, x]| B::float_slice_assign(target, &rows, x),
    );
}

fn those_of_products_are_autodiffs_through_the_reference<B: TrainBackend>(device: &B::Device) {
    let [x, weight, bias, low, b] = [&[33, 40][..], &[67, 40], &[67], &[33, 8], &[67, 8]];
    same::<B, 3>(
        device,
        "linear",
        ([x, weight, bias], 3),
        |[x, weight, bias]| <B as crate::KernelBackend>::linear(x, weight, Some(bias)),
        |[x, weight, bias]| linear::reference::<B>(x, weight, Some(bias)),
    );
    same::<B, 5>(
        device,
        "lora_linear",
        ([x, low, b, weight, bias], 3),
        |[x, low, b, weight, bias]| B::lora_linear(x, weight, Some(bias), low, b, 0.5),
        |[x, low, b, weight, bias]| {
            let side = linear::reference::<B>(B::float_mul_scalar(low, 0.5.into()), b, None);
            B::float_add(linear::reference::<B>(x, weight, Some(bias)), side)
        },
    );
    let span = |start, len| Span { query_start: start, query_len: len, key_start: start, key_len: len };
    let layout = AttentionLayout { spans: [span(0, 20), span(20, 13)].into(), causal: true, window: None, scale: 0.3 };
    let [q, kv] = [&[33, 4, 8][..], &[33, 2, 8]];
    same::<B, 3>(
        device,
        "attention",
        ([q, kv, kv], 3),
        |[q, k, v]| <B as crate::KernelBackend>::attention(q, k, v, &layout),
        |[q, k, v]| attention::reference::<B>(q, k, v, &layout),
    );
    let ids: Vec<u32> = (0..33).map(|row| row * 2).collect();
    let weights: Vec<f32> = (0..33).map(|row| (row % 3) as f32 * 0.5).collect();
    let targets = Targets::new(ids.clone(), weights.clone());
    same::<B, 2>(
        device,
        "cross_entropy_of_linear",
        ([x, weight], 1),
        |[hidden, head]| B::cross_entropy_of_linear(hidden, head, &targets),
        |[hidden, head]| {
            let logits: Tensor<B, 2> = tensor(linear::reference::<B>(hidden, head, None));
            let mut picked = vec![0.0; 33 * 67];
            for (row, (&id, &weight)) in ids.iter().zip(&weights).enumerate() {
                picked[row * 67 + id as usize] = -f64::from(weight);
            }
            let dtype = logits.dtype();
            let picked: Tensor<B, 2> = tensor(Array::new(&[33, 67], picked).on::<B>(device, dtype, View::Plain));
            let losses = burn::tensor::activation::log_softmax(logits, 1) * picked;
            B::float_sum(B::float_reshape(primitive(losses), Shape::from(vec![33 * 67])))
        },
    );
}

on_every_backend!(
    those_of_norms_are_autodiffs_through_the_reference,
    those_of_element_ops_are_autodiffs_through_the_reference,
    those_of_products_are_autodiffs_through_the_reference,
);
