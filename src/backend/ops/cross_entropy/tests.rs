//! The loss of a head and its gradient against the definition in f64, over several chunks.

use burn::tensor::DType;

use super::*;
use crate::TrainBackend;
use crate::ops::oracle::{Array, View, agrees, gradients_agree, on_every_backend, read};

fn oracle(inputs: &[&Array], targets: &Targets) -> Array {
    let [hidden, weight] = inputs else { panic!("two inputs") };
    let mut loss = 0.0;
    for ((hidden, &id), &factor) in hidden.rows().zip(targets.ids.iter()).zip(targets.weights.iter()) {
        let logits: Vec<f64> =
            weight.rows().map(|weight| hidden.iter().zip(weight).map(|(h, w)| h * w).sum()).collect();
        let shift = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - shift).exp()).sum();
        loss += f64::from(factor) * (sum.ln() + shift - logits[id as usize]);
    }
    Array::new(&[1], vec![loss])
}

/// Targets all over the vocabulary, of which every fifth does not count.
fn targets(rows: usize, vocabulary: usize) -> Targets {
    let ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % vocabulary) as u32).collect();
    let weight = |row: usize| if row % 5 == 4 { 0.0 } else { 0.25 + (row % 3) as f32 };
    Targets::new(ids, (0..rows).map(weight).collect::<Vec<_>>())
}

fn arrays(rows: usize, inputs: usize, vocabulary: usize, dtype: DType) -> [Array; 2] {
    let hidden = Array::random(1, &[rows, inputs]).map(|v| v * 2.0);
    [hidden, Array::random(2, &[vocabulary, inputs]).stored(dtype)]
}

fn check<B: TrainBackend>(device: &B::Device, rows: usize, inputs: usize, vocabulary: usize) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if !B::supports_dtype(device, dtype) {
            continue;
        }
        let ([hidden, weight], targets) = (&arrays(rows, inputs, vocabulary, dtype), targets(rows, vocabulary));
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
            B::InnerBackend::cross_entropy_of_linear(t[0].clone(), t[1].clone(), &targets)
        };
        agrees::<B::InnerBackend>(device, &[hidden, weight], 1e-5, op, &oracle(&[hidden, weight], &targets));
    }
}

fn every_size_agrees_with_the_definition<B: TrainBackend>(device: &B::Device) {
    for (rows, inputs, vocabulary) in [(1, 1, 1), (3, 5, 7), (40, 33, 257)] {
        check::<B>(device, rows, inputs, vocabulary);
    }
}

fn chunks_of_rows_add_up<B: TrainBackend>(device: &B::Device) {
    // At most 1024 rows at a time, at least 32.
    check::<B>(device, 2050, 3, 7);
    // No longer a vocabulary than that: llvmpipe ends every loop after 65,535 turns.
    let vocabulary = CHUNK_LOGITS / 64;
    let ([hidden, weight], targets) = (&arrays(65, 1, vocabulary, DType::F32), targets(65, vocabulary));
    let [h, w] = [hidden, weight].map(|x| x.on::<B::InnerBackend>(device, DType::F32, View::Plain));
    let loss = read::<B::InnerBackend>(B::InnerBackend::cross_entropy_of_linear(h, w, &targets)).values[0];
    let expected = oracle(&[hidden, weight], &targets).values[0];
    assert!((loss - expected).abs() < 1e-5 * expected, "{loss} instead of {expected}");
}

fn chunks_of_any_length_give_the_same<B: TrainBackend>(device: &B::Device) {
    let ([hidden, weight], targets) = (&arrays(70, 33, 257, DType::F32), targets(70, 257));
    let run = |chunk| {
        let [h, w] = [hidden, weight].map(|x| tensor(x.on::<B::InnerBackend>(device, DType::F32, View::Plain)));
        let (loss, gradient) = loss_and_gradient::<B::InnerBackend>(h, w, &targets, chunk);
        (read::<B::InnerBackend>(primitive(loss)).values[0], read::<B::InnerBackend>(primitive(gradient)).values)
    };
    let (whole_loss, whole) = run(70);
    let largest = whole.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    for chunk in [1, 16, 69, 1000] {
        let (loss, gradient) = run(chunk);
        assert!((loss - whole_loss).abs() <= 1e-5 * whole_loss, "{chunk}: {loss} instead of {whole_loss}");
        let apart = gradient.iter().zip(&whole).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        assert!(apart <= 1e-5 * largest, "{chunk}: {apart} apart, of {largest}");
    }
}

fn rows_that_do_not_count_cost_nothing<B: TrainBackend>(device: &B::Device) {
    let [hidden, weight] = &arrays(6, 5, 11, DType::F32);
    let some = Targets::new([3, 1, 4, 1, 5, 9], [1.0, 0.0, 0.5, 0.0, 0.0, 0.0]);
    let other = Targets::new([3, 8, 4, 7, 6, 5], [1.0, 0.0, 0.5, 0.0, 0.0, 0.0]);
    let run = |targets: &Targets| {
        let [h, w] = [hidden, weight].map(|x| x.on::<B::InnerBackend>(device, DType::F32, View::Plain));
        let (loss, gradient) = B::InnerBackend::cross_entropy_of_linear_with_gradient(h, w, targets);
        (read::<B::InnerBackend>(loss).values, read::<B::InnerBackend>(gradient))
    };
    let ((loss, gradient), (other_loss, other_gradient)) = (run(&some), run(&other));
    assert_eq!((&loss, &gradient.values), (&other_loss, &other_gradient.values));
    assert!(loss[0] > 0.0);
    for (row, gradient) in gradient.rows().enumerate() {
        assert_eq!(gradient.iter().all(|&v| v == 0.0), row != 0 && row != 2, "row {row}");
    }
}

fn no_rows_lose_nothing<B: TrainBackend>(device: &B::Device) {
    let [hidden, weight] = &arrays(0, 5, 11, DType::F32);
    let [h, w] = [hidden, weight].map(|x| x.on::<B::InnerBackend>(device, DType::F32, View::Plain));
    let (loss, gradient) = B::InnerBackend::cross_entropy_of_linear_with_gradient(h, w, &targets(0, 11));
    assert_eq!(read::<B::InnerBackend>(loss).values, [0.0]);
    assert_eq!(read::<B::InnerBackend>(gradient).shape, [0, 5]);
}

fn large_logits_do_not_overflow<B: TrainBackend>(device: &B::Device) {
    let ([hidden, weight], targets) = (arrays(4, 5, 11, DType::F32), targets(4, 11));
    let hidden = &hidden.map(|v| v * 500.0);
    let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
        B::InnerBackend::cross_entropy_of_linear(t[0].clone(), t[1].clone(), &targets)
    };
    agrees::<B::InnerBackend>(device, &[hidden, &weight], 1e-6, op, &oracle(&[hidden, &weight], &targets));
}

fn the_gradient_agrees_with_differences<B: TrainBackend>(device: &B::Device) {
    for (rows, inputs, vocabulary) in [(1, 1, 2), (3, 5, 7), (40, 33, 257), (1030, 3, 7)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            if !B::supports_dtype(device, dtype) {
                continue;
            }
            let ([hidden, weight], targets) = (&arrays(rows, inputs, vocabulary, dtype), targets(rows, vocabulary));
            let op = |t: Vec<FloatTensor<B>>| B::cross_entropy_of_linear(t[0].clone(), t[1].clone(), &targets);
            gradients_agree::<B>(device, &[hidden, weight], &[0], 1e-5, op, |inputs| oracle(inputs, &targets));
        }
    }
}

on_every_backend!(
    every_size_agrees_with_the_definition,
    chunks_of_rows_add_up,
    chunks_of_any_length_give_the_same,
    rows_that_do_not_count_cost_nothing,
    no_rows_lose_nothing,
    large_logits_do_not_overflow,
    the_gradient_agrees_with_differences,
);
