//! `linear` on the CPU. Few rows: dot products straight from the stored format, at the speed of memory. More: tiles, for which weights that
//! are not f32 are widened part by part. Packed weights, whatever the number of rows: products of integers.

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use crate::packed::Format;
use crate::targets::cpu::ByteProducts;
use crate::targets::flex::dot::{InstructionSet, STREAMS, Stored, VECTORS};
use crate::targets::flex::integers::rows_times_packed;
use crate::targets::flex::matrix::{Into, MatrixMut, MatrixRef, multiply};
use crate::targets::flex::packed::PackedRows;
use crate::targets::flex::product::{self, Over};
pub(crate) use crate::targets::flex::weights::reads;
use crate::targets::flex::weights::{Dense, OnDense, OnWeights, Weights, on_dense, on_weights, shares};
use crate::targets::flex::{Rows, memory, tensor};

/// Up to here dot products win.
const FEW_ROWS: usize = 4;
/// Weights that a thread takes at a time at least, where there are only few vectors: streams from memory are fast when they are long.
const SHARE: usize = 1 << 16;
/// A product this small is done before another thread has begun.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// What an adapter adds, `scale · low · Bᵀ`: `low` `[rows, rank]` with the scale on it, and `b` `[out, rank]`.
struct Update {
    low: Rows,
    b: Rows,
    rank: usize,
}

pub(crate) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    product(x, weight, bias, None)
}

/// The product with an adapter's part added to it in place. `low` and `b` are f32, and no axis is empty.
pub(crate) fn forward_with_update(
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    low: FlexTensor,
    b: FlexTensor,
    scale: f64,
) -> FlexTensor {
    let rank = b.shape()[1];
    let scaled = Flex::float_mul_scalar(low, scale.into());
    product(x, weight, bias, Some(&Update { low: Rows::new(&scaled), b: Rows::new(&b), rank }))
}

fn product(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, update: Option<&Update>) -> FlexTensor {
    let (rows, inputs, outputs) = (x.shape()[0], x.shape()[1], weight.shape()[0]);
    let x = Rows::new(&x);
    let bias = bias.map(|bias| Rows::new(&in_f32(bias)));
    let bias = bias.as_ref().map(Rows::all);
    let out = if rows == 0 || inputs == 0 || outputs == 0 {
        // An empty sum is zero, and the kernels need not know.
        bias.map_or(memory::zeros(rows * outputs), |bias| bias.repeat(rows))
    } else {
        let forward = Forward { x: &x, rows, bias, update };
        match Format::of(weight.dtype()) {
            // At every number of rows, in training too: what was evaluated and trained is what will be decoded.
            Some(_) => {
                let multiply = |out: &mut [f32], into: Into<'_>| {
                    rows_times_packed(ByteProducts::detect(), x.all(), PackedRows::of(&weight), into, out);
                };
                many_rows(forward, outputs, multiply)
            }
            None => on_dense(&weight, forward),
        }
    };
    tensor(out, Shape::from(vec![rows, outputs]))
}

struct Forward<'x> {
    x: &'x Rows,
    rows: usize,
    bias: Option<&'x [f32]>,
    update: Option<&'x Update>,
}

impl OnDense for Forward<'_> {
    type Output = Vec<f32>;

    fn run<T: Stored>(self, weights: Dense<'_, T>) -> Vec<f32> {
        if self.rows <= FEW_ROWS {
            return few_rows(self, weights);
        }
        let x = self.x.all();
        many_rows(self, weights.outputs(), |out, into| {
            product::multiply(InstructionSet::detect(), x, weights, Over::Inputs, into, out);
        })
    }
}

/// `grad · W`.
pub(crate) fn backward_input(grad: FlexTensor, weight: FlexTensor) -> FlexTensor {
    let (rows, outputs, inputs) = (grad.shape()[0], grad.shape()[1], weight.shape()[1]);
    let grad = Rows::new(&grad);
    let out = if rows * inputs * outputs == 0 {
        memory::zeros(rows * inputs)
    } else {
        on_weights(&weight, BackwardInput { grad: grad.all(), rows })
    };
    tensor(out, Shape::from(vec![rows, inputs]))
}

struct BackwardInput<'g> {
    grad: &'g [f32],
    rows: usize,
}

impl OnWeights for BackwardInput<'_> {
    type Output = Vec<f32>;

    fn run<'a>(self, weights: impl Weights<'a>) -> Vec<f32> {
        let mut out = memory::stale(self.rows * weights.inputs());
        product::multiply(InstructionSet::detect(), self.grad, weights, Over::Outputs, Into::Overwrite, &mut out);
        out
    }
}

/// `gradᵀ · x`.
pub(crate) fn backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (rows, inputs, outputs) = (x.shape()[0], x.shape()[1], grad.shape()[1]);
    let (x, grad) = (Rows::new(&x), Rows::new(&grad));
    let mut out = memory::zeros(outputs * inputs);
    let left = MatrixRef::new(grad.all(), rows, outputs, outputs).transposed();
    let right = MatrixRef::new(x.all(), rows, inputs, inputs);
    let parallel = rows * inputs * outputs >= PARALLEL_PRODUCTS;
    multiply(MatrixMut::new(&mut out, outputs, inputs, inputs), Into::Overwrite, left, right, parallel);
    tensor(out, Shape::from(vec![outputs, inputs]))
}

/// `out[w · rows + r] = x[r] · weights[w]`.
fn every_row_dot<T: Stored>(set: InstructionSet, x: &Rows, rows: usize, weights: Dense<T>, out: &mut [f32]) {
    for start in (0..rows).step_by(VECTORS) {
        let vectors: Vec<&[f32]> = (start..rows.min(start + VECTORS)).map(|row| x.row(row)).collect();
        weights.dots(set, &vectors, &mut out[start..], rows);
    }
}

fn few_rows<T: Stored>(Forward { x, rows, bias, update }: Forward, weights: Dense<T>) -> Vec<f32> {
    let set = InstructionSet::detect();
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    // By weight row, so that each thread owns its part: transposed below, which is nothing beside the weights.
    let mut products = memory::stale(outputs * rows);
    let run = |first: usize, out: &mut [f32]| {
        let count = out.len() / rows;
        every_row_dot(set, x, rows, weights.rows(first..first + count), out);
        if let Some(bias) = bias {
            for (out, bias) in out.chunks_exact_mut(rows).zip(&bias[first..]) {
                out.iter_mut().for_each(|out| *out += bias);
            }
        }
        if let Some(Update { low, b, rank }) = update {
            let mut added = memory::scratch(out.len());
            every_row_dot(set, low, rows, Dense::new(b.all(), *rank).rows(first..first + count), &mut added);
            out.iter_mut().zip(&*added).for_each(|(out, added)| *out += added);
        }
    };
    if inputs * outputs < PARALLEL_PRODUCTS {
        run(0, &mut products);
    } else {
        let mut left = &mut products[..];
        let parts = shares(outputs, STREAMS, SHARE / inputs).map(|share| {
            let out;
            (out, left) = std::mem::take(&mut left).split_at_mut(share.len() * rows);
            (share.start, out)
        });
        parts.par_bridge().for_each(|(first, out)| run(first, out));
    }
    if rows == 1 {
        return products;
    }
    let mut out = memory::stale(products.len());
    for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
        out.iter_mut().zip(products.iter().skip(row).step_by(rows)).for_each(|(out, product)| *out = *product);
    }
    out
}

fn many_rows(
    Forward { rows, bias, update, .. }: Forward,
    outputs: usize,
    multiply: impl FnOnce(&mut [f32], Into<'_>),
) -> Vec<f32> {
    let mut out = memory::stale(rows * outputs);
    multiply(&mut out, bias.map_or(Into::Overwrite, Into::Bias));
    if let Some(Update { low, b, rank }) = update {
        let b = Dense::new(b.all(), *rank);
        product::multiply(InstructionSet::detect(), low.all(), b, Over::Inputs, Into::Add, &mut out);
    }
    out
}

/// A bias, which is read as f32.
fn in_f32(vector: FlexTensor) -> FlexTensor {
    if vector.dtype() == DType::F32 { vector } else { Flex::float_cast(vector, DType::F32.into()) }
}
