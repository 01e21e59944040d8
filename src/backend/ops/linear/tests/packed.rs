//! Every op that takes a weight, on packed weights, against the same op on their values; with gradients, since adapters train on packed bases.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use half::f16;

use super::super::linear;
use crate::TrainBackend;
use crate::ops::cross_entropy::{Targets, cross_entropy_of_linear};
use crate::ops::embedding::{embedding, unpacked};
use crate::ops::linears::linears;
use crate::ops::lora_linear::lora_linear;
use crate::ops::oracle::on_every_backend;
use crate::ops::tensor;
use crate::packed::{Format, Packed};

fn random<B: Backend>(seed: usize, shape: [usize; 2], device: &B::Device) -> Tensor<B, 2> {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| ((i * 37 + seed * 101) as f32 * 0.618).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// How a weight is packed.
#[derive(Clone, Copy, Debug)]
struct Packing {
    format: Format,
    block: usize,
    offsets: bool,
}

/// A packed weight, and its values; nothing where the backend does not read it, or its rows are not made of such blocks.
fn weights<B: TrainBackend>(
    Packing { format, block, offsets }: Packing,
    shape: [usize; 2],
    device: &B::Device,
) -> Option<[Tensor<B, 2>; 2]> {
    if !B::reads_weights(device, format.dtype(block)) {
        return None;
    }
    let values = random::<B>(7, shape, device).into_data().to_vec::<f32>().unwrap();
    let mut packed = Packed::pack(format, shape, &values).unwrap();
    if !packed.block.is_multiple_of(block) {
        return None;
    }
    let parts = packed.block / block;
    let scale = |&scale: &f16| (0..parts).map(move |part| f16::from_f32(scale.to_f32() / (part + 1) as f32));
    packed = Packed { block, scales: packed.scales.iter().flat_map(scale).collect(), ..packed };
    // One that f16 has no more than ten bits for, and a negative one.
    packed.scales[0] = f16::from_f32(3e-6);
    packed.scales[1 % (shape[0] * shape[1] / block)] = f16::from_f32(-0.01);
    if offsets {
        packed.offsets = Some((0..packed.scales.len()).map(|i| f16::from_f32(0.1 * (i as f32).cos())).collect());
    }
    let expected = Tensor::<B, 2>::from_data(TensorData::new(packed.unpacked(), shape), device);
    let packed = tensor::<B, 2>(B::packed(packed, device));
    let values = unpacked(packed.clone());
    assert_eq!((Format::of(packed.dtype()), values.dtype()), (Some((format, block)), DType::F32));
    close("unpacked", values.clone(), expected);
    Some([packed, values])
}

/// What the products with packed weights see of activations. On the CPU: the nearest of 255 values in each block, which counts as the identity
/// for gradients; elsewhere all of them.
fn seen<B: TrainBackend>(x: Tensor<B, 2>, block: usize) -> Tensor<B, 2> {
    let device = x.device();
    if B::name(&device).contains("flex") {
        let mut values = x.clone().into_data().to_vec::<f32>().unwrap();
        for block in values.chunks_exact_mut(block) {
            // As the kernel computes it, so that what lies in the middle goes to the same side.
            let largest = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let step = |value: f32| largest / 127.0 * (value * (127.0 / largest)).round_ties_even();
            block.iter_mut().for_each(|value| *value = step(*value));
        }
        let off = Tensor::<B, 2>::from_data(TensorData::new(values, x.dims()), &device) - x.clone().detach();
        return x + off.detach();
    }
    x
}

fn close<B: Backend, const D: usize>(what: &str, one: Tensor<B, D>, other: Tensor<B, D>) {
    let [one, other] = [one, other].map(|t| t.into_data().to_vec::<f32>().unwrap());
    assert_eq!(one.len(), other.len());
    let largest = other.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    for (a, b) in one.iter().zip(&other) {
        assert!((a - b).abs() <= 2e-6 * largest.max(1.0), "{what}: {a} {b}");
    }
}

/// A packed weight and its values in turn, with the number of rows.
fn each<B: TrainBackend>(device: &B::Device, check: impl Fn(&str, [Tensor<B, 2>; 2], usize, usize)) {
    for (format, block, offsets) in [
        (Format::Q8, 32, false),
        (Format::Q4, 32, false),
        (Format::Q8, 32, true),
        (Format::Q4, 32, true),
        (Format::Q8, 16, false),
        (Format::Q4, 16, true),
        (Format::Q8, 64, false),
        (Format::Q8, 64, true),
    ] {
        let packing = Packing { format, block, offsets };
        for (rows, shape) in [1, 3, 5, 8, 9, 33, 530]
            .into_iter()
            .flat_map(|rows| [[1, 32], [67, 96], [70, 128], [300, 2176], [4500, 32]].map(|shape| (rows, shape)))
        {
            // The shape of the longest blocks adds nothing to others, and a device that computes on the processor need not do the largest.
            if shape[1] == 128 && block != 64 || rows > 33 && shape[1] > 128 && !B::name(device).contains("flex") {
                continue;
            }
            if let Some(weights) = weights::<B>(packing, shape, device) {
                check(&format!("{packing:?} {rows} {shape:?}"), weights, rows, block);
            }
        }
    }
}

/// What the product of a packed weight sees of these, or that of its values has to be given.
fn given<B: TrainBackend>(weight: &Tensor<B, 2>, x: Tensor<B, 2>, block: usize) -> Tensor<B, 2> {
    if Format::of(weight.dtype()).is_some() { x } else { seen(x, block) }
}

fn products_and_their_gradients_are_those_of_the_values<B: TrainBackend>(device: &B::Device) {
    each::<B>(device, |what, weights, rows, block| {
        let [out, inputs] = weights[0].dims();
        let [one, other] = weights.map(|weight| {
            let x = random::<B>(1, [rows, inputs], device).require_grad();
            let bias = Tensor::<B, 1>::ones([out], device);
            let y = linear(given(&weight, x.clone(), block), weight, Some(bias));
            let gradients = (y.clone() * random(2, [rows, out], device)).sum().backward();
            (y.inner(), x.grad(&gradients).unwrap())
        });
        close(what, one.0, other.0);
        close(what, one.1, other.1);
    });
}

/// Of one format, with different parts, and one that is not packed.
fn several_products_are_those_of_the_values<B: TrainBackend>(device: &B::Device) {
    for (format, rows) in
        [Format::Q8, Format::Q4].into_iter().flat_map(|format| [(format, 1), (format, 8), (format, 9)])
    {
        for offsets in [[false; 3], [true; 3], [false, true, false]] {
            let mut pairs = Vec::new();
            for (outputs, offsets) in [33, 8, 64].into_iter().zip(offsets) {
                pairs.extend(weights::<B>(Packing { format, block: 32, offsets }, [outputs, 96], device));
            }
            let Ok::<[_; 3], _>(pairs) = pairs.try_into() else { return };
            let x = random::<B>(1, [rows, 96], device).inner();
            let packed = linears(x.clone(), pairs.each_ref().map(|[packed, _]| (packed.clone().inner(), None)));
            for (one, [_, values]) in packed.into_iter().zip(pairs) {
                let given = seen(Tensor::<B, 2>::from_inner(x.clone()), 32);
                close(&format!("{format:?} {rows} {offsets:?}"), one, linear(given, values, None).inner());
            }
        }
    }
}

fn adapters_train_on_packed_weights_as_on_the_values<B: TrainBackend>(device: &B::Device) {
    each::<B>(device, |what, weights, rows, block| {
        let [out, inputs] = weights[0].dims();
        let [one, other] = weights.map(|weight| {
            let x = random::<B>(1, [rows, inputs], device).require_grad();
            let [a, b] = [(3, [2, inputs]), (4, [out, 2])].map(|(seed, shape)| random::<B>(seed, shape, device));
            let (a, b) = (a.require_grad(), b.require_grad());
            // The adapter's own part is in f32, of activations as they are.
            let y = match Format::of(weight.dtype()) {
                Some(_) => lora_linear(x.clone(), None, weight, None, [a.clone(), b.clone()], 0.5),
                None => {
                    let low = linear(x.clone(), a.clone(), None);
                    linear(seen(x.clone(), block), weight, None) + linear(low, b.clone(), None) * 0.5
                }
            };
            let gradients = (y.clone() * random(2, [rows, out], device)).sum().backward();
            [y.inner()].into_iter().chain([x, a, b].map(|t| t.grad(&gradients).unwrap())).collect::<Vec<_>>()
        });
        one.into_iter().zip(other).for_each(|(one, other)| close(what, one, other));
    });
}

fn the_loss_of_a_packed_head_is_that_of_the_values<B: TrainBackend>(device: &B::Device) {
    for format in [Format::Q8, Format::Q4] {
        let Some(weights) = weights::<B>(Packing { format, block: 32, offsets: false }, [257, 64], device) else {
            return;
        };
        let targets = Targets::new((0..40).map(|row| row * 6).collect::<Vec<u32>>(), vec![0.5; 40]);
        let [one, other] = weights.map(|weight| {
            let hidden = random::<B>(1, [40, 64], device).require_grad();
            let loss = cross_entropy_of_linear(given(&weight, hidden.clone(), 32), weight, &targets);
            let gradients = loss.backward();
            (loss.inner(), hidden.grad(&gradients).unwrap())
        });
        close("loss", one.0, other.0);
        close("gradient", one.1, other.1);
    }
}

fn rows_of_a_packed_table_are_those_of_the_values<B: TrainBackend>(device: &B::Device) {
    each::<B>(device, |what, [packed, values], rows, _| {
        let last = packed.dims()[0] - 1;
        let ids: Vec<i32> = (0..rows).map(|row| ((row * 7919) % (last + 1)) as i32).chain([last as i32]).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [rows + 1]), device);
        close(what, embedding(packed, ids.clone()).inner(), embedding(values, ids).inner());
    });
}

on_every_backend!(
    products_and_their_gradients_are_those_of_the_values,
    several_products_are_those_of_the_values,
    adapters_train_on_packed_weights_as_on_the_values,
    the_loss_of_a_packed_head_is_that_of_the_values,
    rows_of_a_packed_table_are_those_of_the_values,
);
