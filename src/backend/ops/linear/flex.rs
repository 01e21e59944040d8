//! `linear` on the CPU. Few rows: dot products straight from the stored format, at the speed of memory. Some tens to hundreds: tiles of
//! our own, for which the weight is not packed. Many rows: blocks of the weight are widened into a scratch of each thread and multiplied
//! by the `gemm` crate.

use std::ops::Range;

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::targets::flex::dot::{InstructionSet, Stored, VECTORS, rows_dot};
use crate::targets::flex::matrix::{ColumnBlocks, Into, MatrixMut, MatrixRef, multiply, multiply_by_column_blocks};
use crate::targets::flex::product::rows_times_weight;
use crate::targets::flex::{Rows, contiguous, memory, tensor};

/// Up to here dot products win.
const FEW_ROWS: usize = 4;
/// Beyond, packing the weight for a matrix product pays.
const SOME_ROWS: usize = 512;
/// Bytes of weight rows taken at a time by a thread: they stay in its first-level cache while every vector meets them.
const BLOCK_BYTES: usize = 1 << 15;
/// A product this small is done before another thread has woken up.
const PARALLEL_PRODUCTS: usize = 1 << 17;
/// Weight rows widened at a time where the sum runs over them.
const DEPTH: usize = 4096;

/// Whether weights of this dtype are read as they are.
pub(crate) fn reads(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Calls `$body` with `$weights` as the slice of the stored element type.
macro_rules! with_stored {
    ($tensor:expr, |$weights:ident| $body:expr) => {{
        let tensor = contiguous(&$tensor);
        let start = tensor.layout().start_offset();
        let range = start..start + tensor.shape().num_elements();
        let result = match tensor.dtype() {
            DType::F32 => {
                let $weights = &tensor.storage::<f32>()[range];
                $body
            }
            DType::F16 => {
                let $weights = &tensor.storage::<f16>()[range];
                $body
            }
            DType::BF16 => {
                let $weights = &tensor.storage::<bf16>()[range];
                $body
            }
            other => unreachable!("linear does not read {other:?}"),
        };
        result
    }};
}

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
    let bias = bias.map(|bias| Rows::new(&if bias.dtype() == DType::F32 { bias } else { widened(&bias) }));
    let bias = bias.as_ref().map(Rows::all);
    let out = with_stored!(weight, |weights| {
        if rows == 0 || inputs == 0 || outputs == 0 {
            // An empty sum is zero, and the kernels need not know.
            bias.map_or(memory::zeros(rows * outputs), |bias| bias.repeat(rows))
        } else if rows <= FEW_ROWS {
            few_rows(&x, rows, inputs, weights, outputs, (bias, update))
        } else {
            many_rows(x.all(), rows, inputs, weights, outputs, (bias, update))
        }
    });
    tensor(out, Shape::from(vec![rows, outputs]))
}

/// `grad · W`, the weight widened block by block.
pub(crate) fn backward_input(grad: FlexTensor, weight: FlexTensor) -> FlexTensor {
    let (rows, outputs, inputs) = (grad.shape()[0], grad.shape()[1], weight.shape()[1]);
    let grad = Rows::new(&grad);
    if rows * inputs * outputs == 0 {
        return tensor(memory::zeros(rows * inputs), Shape::from(vec![rows, inputs]));
    }
    let mut out = memory::stale(rows * inputs);
    with_stored!(weight, |weights| {
        for start in (0..outputs).step_by(DEPTH) {
            let depth = DEPTH.min(outputs - start);
            let left = MatrixRef::new(&grad.all()[start..], rows, depth, outputs);
            let weights = &weights[start * inputs..(start + depth) * inputs];
            let destination = MatrixMut::new(&mut out, rows, inputs, inputs);
            let into = if start == 0 { Into::Overwrite } else { Into::Add };
            multiply_by_column_blocks(destination, into, left, &AsStored { weights, inputs });
        }
    });
    tensor(out, Shape::from(vec![rows, inputs]))
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
fn every_row_dot<T: Stored>(set: InstructionSet, x: &Rows, rows: usize, weights: &[T], length: usize, out: &mut [f32]) {
    for start in (0..rows).step_by(VECTORS) {
        let vectors: Vec<&[f32]> = (start..rows.min(start + VECTORS)).map(|row| x.row(row)).collect();
        rows_dot(set, &vectors, weights, length, &mut out[start..], rows);
    }
}

fn few_rows<T: Stored>(
    x: &Rows,
    rows: usize,
    inputs: usize,
    weights: &[T],
    outputs: usize,
    (bias, update): (Option<&[f32]>, Option<&Update>),
) -> Vec<f32> {
    let set = InstructionSet::detect();
    // By weight row, so that each thread owns its part: transposed below, which is nothing beside the weights.
    let mut products = memory::stale(outputs * rows);
    let block = (BLOCK_BYTES / (inputs * size_of::<T>())).clamp(16, outputs.max(16));
    let run = |first: usize, weights: &[T], out: &mut [f32]| {
        every_row_dot(set, x, rows, weights, inputs, out);
        if let Some(bias) = bias {
            for (out, bias) in out.chunks_exact_mut(rows).zip(&bias[first..]) {
                out.iter_mut().for_each(|out| *out += bias);
            }
        }
        if let Some(Update { low, b, rank }) = update {
            let mut added = vec![0.0; out.len()];
            let b = &b.all()[first * rank..first * rank + added.len() / rows * rank];
            every_row_dot(set, low, rows, b, *rank, &mut added);
            out.iter_mut().zip(added).for_each(|(out, added)| *out += added);
        }
    };
    if inputs * outputs < PARALLEL_PRODUCTS {
        run(0, weights, &mut products);
    } else {
        let blocks = weights.par_chunks(block * inputs).zip(products.par_chunks_mut(block * rows));
        blocks.enumerate().for_each(|(index, (weights, out))| run(index * block, weights, out));
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

fn many_rows<T: Stored>(
    x: &[f32],
    rows: usize,
    inputs: usize,
    weights: &[T],
    outputs: usize,
    (bias, update): (Option<&[f32]>, Option<&Update>),
) -> Vec<f32> {
    let mut out = memory::stale(rows * outputs);
    let mut into = Into::Overwrite;
    if let Some(bias) = bias {
        out.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
        into = Into::Add;
    }
    multiply_into(&mut out, into, x, inputs, weights);
    if let Some(Update { low, b, rank }) = update {
        multiply_into(&mut out, Into::Add, low.all(), *rank, b.all());
    }
    out
}

/// `out (+)= x · Wᵀ`.
fn multiply_into<T: Stored>(out: &mut [f32], into: Into, x: &[f32], inputs: usize, weights: &[T]) {
    let (rows, outputs) = (x.len() / inputs, weights.len() / inputs);
    if rows <= SOME_ROWS {
        return rows_times_weight(InstructionSet::detect(), x, inputs, weights, into, out);
    }
    let left = MatrixRef::new(x, rows, inputs, inputs);
    let destination = MatrixMut::new(out, rows, outputs, outputs);
    multiply_by_column_blocks(destination, into, left, &Transposed { weights, inputs });
}

/// The weight as it is stored, `[outputs, inputs]`, the right-hand side of the gradient.
struct AsStored<'a, T> {
    weights: &'a [T],
    inputs: usize,
}

impl<T: Stored> ColumnBlocks for AsStored<'_, T> {
    fn columns<'s>(&'s self, columns: Range<usize>, scratch: &'s mut Vec<f32>) -> MatrixRef<'s> {
        let rows = self.weights.len() / self.inputs;
        if let Some(weights) = T::as_f32(self.weights) {
            return MatrixRef::new(&weights[columns.start..], rows, columns.len(), self.inputs);
        }
        scratch.resize(rows * columns.len(), 0.0);
        for (from, to) in self.weights.chunks_exact(self.inputs).zip(scratch.chunks_exact_mut(columns.len())) {
            T::widen_into(&from[columns.clone()], to);
        }
        MatrixRef::new(scratch, rows, columns.len(), columns.len())
    }
}

/// The transpose, `[inputs, outputs]`, the right-hand side of the forward product.
struct Transposed<'a, T> {
    weights: &'a [T],
    inputs: usize,
}

impl<T: Stored> ColumnBlocks for Transposed<'_, T> {
    fn columns<'s>(&'s self, columns: Range<usize>, scratch: &'s mut Vec<f32>) -> MatrixRef<'s> {
        let rows = &self.weights[columns.start * self.inputs..columns.end * self.inputs];
        let rows = match T::as_f32(rows) {
            Some(rows) => rows,
            None => {
                scratch.resize(rows.len(), 0.0);
                T::widen_into(rows, scratch);
                scratch
            }
        };
        MatrixRef::new(rows, columns.len(), self.inputs, self.inputs).transposed()
    }
}

fn widened(vector: &FlexTensor) -> FlexTensor {
    let data = with_stored!(vector, |values| {
        let mut out = vec![0.0; values.len()];
        Stored::widen_into(values, &mut out);
        out
    });
    tensor(data, vector.shape())
}
