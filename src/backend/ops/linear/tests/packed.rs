//! Every op that takes a weight, on packed weights, against the same op on their values and on activations rounded as theirs are; with
//! gradients, since adapters train on packed bases.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};

use super::super::linear;
use crate::KernelBackend;
use crate::ops::cross_entropy::{Targets, cross_entropy_of_linear};
use crate::ops::embedding::unpacked;
use crate::ops::lora_linear::lora_linear;
use crate::ops::tensor;
use crate::packed::{Format, Packed};

type Train = Autodiff<Flex>;

fn random(seed: usize, shape: [usize; 2]) -> Tensor<Train, 2> {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| ((i * 37 + seed * 101) as f32 * 0.618).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), &FlexDevice)
}

/// A packed weight, and its values.
fn weights(format: Format, shape: [usize; 2], offsets: bool) -> [Tensor<Train, 2>; 2] {
    let values = random(7, shape).into_data().to_vec::<f32>().unwrap();
    let mut packed = Packed::pack(format, shape, &values).unwrap();
    if offsets {
        packed.offsets = Some((0..packed.scales.len()).map(|i| half::f16::from_f32(0.1 * (i as f32).cos())).collect());
    }
    let packed = tensor::<Train, 2>(Train::packed(packed, &FlexDevice));
    let values = unpacked(packed.clone());
    assert_eq!((Format::of(packed.dtype()), values.dtype()), (Some((format, 32)), DType::F32));
    [packed, values]
}

/// What the products with packed weights see of activations: the nearest of 255 values in each block. Rounding counts as the identity for
/// gradients.
fn rounded(x: Tensor<Train, 2>) -> Tensor<Train, 2> {
    let mut values = x.clone().into_data().to_vec::<f32>().unwrap();
    for block in values.chunks_exact_mut(32) {
        // As the kernel computes it, so that what lies in the middle goes to the same side.
        let largest = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        block.iter_mut().for_each(|value| *value = largest / 127.0 * (*value * (127.0 / largest)).round_ties_even());
    }
    let off = TensorData::new(values, x.dims());
    let off = Tensor::<Train, 2>::from_data(off, &FlexDevice) - x.clone().detach();
    x + off.detach()
}

fn close<const D: usize>(what: &str, one: Tensor<Flex, D>, other: Tensor<Flex, D>) {
    let [one, other] = [one, other].map(|t| t.into_data().to_vec::<f32>().unwrap());
    let largest = other.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    for (a, b) in one.iter().zip(&other) {
        assert!((a - b).abs() <= 2e-6 * largest.max(1.0), "{what}: {a} {b}");
    }
}

fn each(check: impl Fn(&str, [Tensor<Train, 2>; 2], usize)) {
    for (format, offsets) in [(Format::Q8, false), (Format::Q4, false), (Format::Q8, true), (Format::Q4, true)] {
        for rows in [1, 3, 4, 5, 33, 530] {
            for shape in [[1, 32], [67, 96], [300, 2144], [4500, 32]] {
                let what = format!("{} {offsets} {rows} {shape:?}", format.name());
                check(&what, weights(format, shape, offsets), rows);
            }
        }
    }
}

#[test]
fn products_and_their_gradients_are_those_of_the_values() {
    each(|what, weights, rows| {
        let [out, inputs] = weights[0].dims();
        let [one, other] = weights.map(|weight| {
            let x = random(1, [rows, inputs]).require_grad();
            let bias = Tensor::<Train, 1>::ones([out], &FlexDevice);
            let seen = if Format::of(weight.dtype()).is_some() { x.clone() } else { rounded(x.clone()) };
            let y = linear(seen, weight, Some(bias));
            let gradients = (y.clone() * random(2, [rows, out])).sum().backward();
            (y.inner(), x.grad(&gradients).unwrap())
        });
        close(what, one.0, other.0);
        close(what, one.1, other.1);
    });
}

#[test]
fn adapters_train_on_packed_weights_as_on_the_values() {
    each(|what, weights, rows| {
        let [out, inputs] = weights[0].dims();
        let [one, other] = weights.map(|weight| {
            let x = random(1, [rows, inputs]).require_grad();
            let (a, b) = (random(3, [2, inputs]).require_grad(), random(4, [out, 2]).require_grad());
            // The adapter's own part is in f32, of activations as they are.
            let y = match Format::of(weight.dtype()) {
                Some(_) => lora_linear(x.clone(), None, weight, None, [a.clone(), b.clone()], 0.5),
                None => {
                    let low = linear(x.clone(), a.clone(), None);
                    linear(rounded(x.clone()), weight, None) + linear(low, b.clone(), None) * 0.5
                }
            };
            let gradients = (y.clone() * random(2, [rows, out])).sum().backward();
            [y.inner()].into_iter().chain([x, a, b].map(|t| t.grad(&gradients).unwrap())).collect::<Vec<_>>()
        });
        one.into_iter().zip(other).for_each(|(one, other)| close(what, one, other));
    });
}

#[test]
fn the_loss_of_a_packed_head_is_that_of_the_values() {
    for format in [Format::Q8, Format::Q4] {
        let weights = weights(format, [257, 64], false);
        let targets = Targets::new((0..40).map(|row| row * 6).collect::<Vec<u32>>(), vec![0.5; 40]);
        let [one, other] = weights.map(|weight| {
            let hidden = random(1, [40, 64]).require_grad();
            let seen = if Format::of(weight.dtype()).is_some() { hidden.clone() } else { rounded(hidden.clone()) };
            let loss = cross_entropy_of_linear(seen, weight, &targets);
            let gradients = loss.backward();
            (loss.inner(), hidden.grad(&gradients).unwrap())
        });
        close("loss", one.0, other.0);
        close("gradient", one.1, other.1);
    }
}
