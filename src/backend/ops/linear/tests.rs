//! `linear` and its gradients against sums in f64, in every format a weight is stored in.

mod packed;

use burn::tensor::DType;

use super::*;
use crate::TrainBackend;
use crate::ops::oracle::{Array, View, agrees, gradients_agree, on_every_backend, read};

/// `x · Wᵀ`, and `b` if there is a third input.
pub(crate) fn oracle(inputs: &[&Array]) -> Array {
    let (x, weight) = (inputs[0], inputs[1]);
    let bias = |output: usize| inputs.get(2).map_or(0.0, |bias| bias.values[output]);
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    let values =
        x.rows().flat_map(|x| weight.rows().enumerate().map(move |(output, w)| dot(x, w) + bias(output))).collect();
    Array::new(&[x.shape[0], weight.shape[0]], values)
}

fn arrays(rows: usize, inputs: usize, outputs: usize, dtype: DType) -> [Array; 3] {
    let weight = Array::random(2, &[outputs, inputs]).stored(dtype);
    [Array::random(1, &[rows, inputs]), weight, Array::random(3, &[outputs]).stored(dtype)]
}

fn check<B: TrainBackend>(device: &B::Device, rows: usize, inputs: usize, outputs: usize) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if !B::supports_dtype(device, dtype) {
            continue;
        }
        let [x, weight, bias] = &arrays(rows, inputs, outputs, dtype);
        let tolerance = 1e-6 * (inputs as f64).sqrt().max(4.0);
        // A bias is stored as the weight is, or precise.
        let precise = &Array::random(4, &[outputs]);
        for inputs in [&[x, weight][..], &[x, weight, bias], &[x, weight, precise]] {
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
                <B::InnerBackend as KernelBackend>::linear(t[0].clone(), t[1].clone(), t.get(2).cloned())
            };
            agrees::<B::InnerBackend>(device, inputs, tolerance, op, &oracle(inputs));
        }
    }
}

fn every_number_of_rows_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
    for rows in (1..=9).chain([24, 25, 33, 300]) {
        for (inputs, outputs) in [(1, 1), (3, 5), (33, 17), (130, 67)] {
            check::<B>(device, rows, inputs, outputs);
        }
    }
}

fn large_weights_agree_with_the_oracle<B: TrainBackend>(device: &B::Device) {
    for rows in [1, 5, 24, 25, 40] {
        check::<B>(device, rows, 515, 643);
    }
    check::<B>(device, 1, 3, 50_001);
    check::<B>(device, 25, 3, 50_001);
    check::<B>(device, 2, 50_001, 3);
}

fn empty_axes_give_empty_results_or_the_bias<B: TrainBackend>(device: &B::Device) {
    let random = |shape: [usize; 2]| Array::random(1, &shape).on::<B::InnerBackend>(device, DType::F32, View::Plain);
    for (rows, inputs, outputs) in [(0, 3, 5), (2, 0, 5), (40, 0, 5), (2, 3, 0), (40, 3, 0), (0, 0, 0), (0, 3, 5000)] {
        let bias = Array::random(2, &[outputs]);
        let bias_tensor = bias.on::<B::InnerBackend>(device, DType::F32, View::Plain);
        let (x, weight) = (random([rows, inputs]), random([outputs, inputs]));
        let output = read::<B::InnerBackend>(<B::InnerBackend as KernelBackend>::linear(x, weight, Some(bias_tensor)));
        assert_eq!((output.shape, output.values), (vec![rows, outputs], bias.values.repeat(rows)));
        let gradient = B::InnerBackend::linear_backward_input(random([rows, outputs]), random([outputs, inputs]));
        let gradient = read::<B::InnerBackend>(gradient);
        assert_eq!(gradient.shape, [rows, inputs]);
        assert!(outputs > 0 || gradient.values.iter().all(|&v| v == 0.0));
        let gradient = B::InnerBackend::linear_backward_weight(random([rows, inputs]), random([rows, outputs]));
        let gradient = read::<B::InnerBackend>(gradient);
        assert_eq!(gradient.shape, [outputs, inputs]);
        assert!(rows > 0 || gradient.values.iter().all(|&v| v == 0.0));
    }
}

fn nan_in_a_row_stays_in_that_row<B: TrainBackend>(device: &B::Device) {
    for rows in [3, 30] {
        let [mut x, weight, _] = arrays(rows, 37, 19, DType::F32);
        x.values[37 + 36] = f64::NAN;
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
            <B::InnerBackend as KernelBackend>::linear(t[0].clone(), t[1].clone(), None)
        };
        agrees::<B::InnerBackend>(device, &[&x, &weight], 1e-5, op, &oracle(&[&x, &weight]));
    }
}

fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
    let op = |t: Vec<FloatTensor<B>>| <B as KernelBackend>::linear(t[0].clone(), t[1].clone(), t.get(2).cloned());
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 5, 7), (33, 17, 67), (33, 130, 300)] {
        let [x, weight, bias] = &arrays(rows, inputs, outputs, DType::F32);
        gradients_agree::<B>(device, &[x, weight, bias], &[0, 1, 2], 5e-5, op, oracle);
        gradients_agree::<B>(device, &[x, weight], &[0, 1], 5e-5, op, oracle);
    }
}

fn a_frozen_weight_of_any_format_lets_the_gradient_through<B: TrainBackend>(device: &B::Device) {
    let op = |t: Vec<FloatTensor<B>>| <B as KernelBackend>::linear(t[0].clone(), t[1].clone(), t.get(2).cloned());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if !B::supports_dtype(device, dtype) {
            continue;
        }
        // The last has more outputs than are widened at a time.
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 5, 7), (33, 130, 300), (9, 3, 4100)] {
            let [x, weight, bias] = &arrays(rows, inputs, outputs, dtype);
            gradients_agree::<B>(device, &[x, weight, bias], &[0], 5e-5, op, oracle);
        }
    }
}

on_every_backend!(
    every_number_of_rows_agrees_with_the_oracle,
    large_weights_agree_with_the_oracle,
    empty_axes_give_empty_results_or_the_bias,
    nan_in_a_row_stays_in_that_row,
    gradients_agree_with_differences,
    a_frozen_weight_of_any_format_lets_the_gradient_through,
);
