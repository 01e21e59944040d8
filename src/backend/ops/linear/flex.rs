//! `linear` on the CPU. Few rows: dot products straight from the stored format, at the speed of memory. More: tiles, for which weights that
//! are not f32 are widened part by part. Packed weights, whatever the number of rows: products of integers.

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use crate::packed::Format;
use crate::targets::cpu::ByteProducts;
use crate::targets::flex::arranged::{self, ArrangedRows};
use crate::targets::flex::dot::{InstructionSet, STREAMS, Stored, VECTORS};
use crate::targets::flex::integers::rows_times_packed;
use crate::targets::flex::matrix::{Into, MatrixMut, MatrixRef, Product, multiply};
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

/// One of the linear maps of the same rows.
struct Map {
    weight: FlexTensor,
    bias: Option<Rows>,
    update: Option<Update>,
}

impl Map {
    fn new(weight: FlexTensor, bias: Option<FlexTensor>, update: Option<Update>) -> Self {
        Self { weight, bias: bias.map(|bias| Rows::new(&in_f32(bias))), update }
    }
}

pub(crate) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    let [output] = products(x, [Map::new(weight, bias, None)]);
    output
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
    let update = Update { low: Rows::new(&scaled), b: Rows::new(&b), rank };
    let [output] = products(x, [Map::new(weight, bias, Some(update))]);
    output
}

/// The products by several weights of one dtype, of which none is empty: rows are laid out, or rounded to bytes, once, and threads wait for
/// each other once.
pub(crate) fn forward_all<const N: usize>(
    x: FlexTensor,
    maps: [(FlexTensor, Option<FlexTensor>); N],
) -> [FlexTensor; N] {
    products(x, maps.map(|(weight, bias)| Map::new(weight, bias, None)))
}

fn products<const N: usize>(x: FlexTensor, maps: [Map; N]) -> [FlexTensor; N] {
    let (rows, inputs) = (x.shape()[0], x.shape()[1]);
    let outputs = maps.each_ref().map(|map| map.weight.shape()[0]);
    let forward = Forward { x: &Rows::new(&x), rows, maps: &maps };
    let results = if rows * inputs == 0 || outputs.contains(&0) {
        // An empty sum is zero, and the kernels need not know.
        let empty = |(map, outputs): (&Map, &usize)| match &map.bias {
            Some(bias) => bias.all().repeat(rows),
            None => memory::zeros(rows * outputs),
        };
        maps.iter().zip(&outputs).map(empty).collect()
    } else {
        match Format::of(maps[0].weight.dtype()) {
            // At every number of rows, in training too: what was evaluated and trained is what will be decoded.
            Some(_) => {
                let weights = maps.iter().map(|map| PackedRows::of(&map.weight)).collect();
                forward.many_rows(weights, |x, products| rows_times_packed(ByteProducts::detect(), x, products))
            }
            None if arranged::is(maps[0].weight.dtype()) => {
                let weights = maps.iter().map(|map| ArrangedRows::of(&map.weight)).collect();
                forward.many_rows(weights, product_by_inputs)
            }
            None => on_dense(&maps.each_ref().map(|map| &map.weight), forward),
        }
    };
    let mut results = results.into_iter().zip(outputs);
    std::array::from_fn(|_| {
        let (result, outputs) = results.next().expect("a result for each map");
        tensor(result, Shape::from(vec![rows, outputs]))
    })
}

/// The maps of some rows.
#[derive(Clone, Copy)]
struct Forward<'x> {
    x: &'x Rows,
    rows: usize,
    maps: &'x [Map],
}

impl OnDense for Forward<'_> {
    type Output = Vec<Vec<f32>>;

    fn run<T: Stored>(self, weights: Vec<Dense<'_, T>>) -> Vec<Vec<f32>> {
        if self.rows <= FEW_ROWS {
            return self.few_rows(&weights);
        }
        self.many_rows(weights, product_by_inputs)
    }
}

impl Forward<'_> {
    fn few_rows<T: Stored>(self, weights: &[Dense<'_, T>]) -> Vec<Vec<f32>> {
        let (set, rows, inputs) = (InstructionSet::detect(), self.rows, weights[0].inputs());
        let outputs: Vec<usize> = weights.iter().map(|weights| weights.outputs()).collect();
        // By weight row, so that each thread owns its part: transposed below, which is nothing beside the weights.
        let mut products: Vec<_> = outputs.iter().map(|outputs| memory::stale(outputs * rows)).collect();
        let run = |map: usize, first: usize, out: &mut [f32]| {
            let count = out.len() / rows;
            every_row_dot(set, self.x, rows, weights[map].rows(first..first + count), out);
            let Map { bias, update, .. } = &self.maps[map];
            if let Some(bias) = bias {
                for (out, bias) in out.chunks_exact_mut(rows).zip(&bias.all()[first..]) {
                    out.iter_mut().for_each(|out| *out += bias);
                }
            }
            if let Some(Update { low, b, rank }) = update {
                let mut added = memory::scratch(out.len());
                every_row_dot(set, low, rows, Dense::new(b.all(), *rank).rows(first..first + count), &mut added);
                out.iter_mut().zip(&*added).for_each(|(out, added)| *out += added);
            }
        };
        if inputs * outputs.iter().sum::<usize>() < PARALLEL_PRODUCTS {
            products.iter_mut().enumerate().for_each(|(map, out)| run(map, 0, out));
        } else {
            let mut left: Vec<&mut [f32]> = products.iter_mut().map(Vec::as_mut_slice).collect();
            let shares = shares(&outputs, STREAMS, SHARE / inputs).map(|share| {
                let parts = share.into_iter().map(|(map, part)| {
                    let out;
                    (out, left[map]) = std::mem::take(&mut left[map]).split_at_mut(part.len() * rows);
                    (map, part.start, out)
                });
                parts.collect::<Vec<_>>()
            });
            shares.par_bridge().for_each(|share| share.into_iter().for_each(|(map, first, out)| run(map, first, out)));
        }
        if rows == 1 {
            return products;
        }
        let by_row = products.iter().zip(&outputs).map(|(products, &outputs)| {
            let mut out = memory::stale(products.len());
            for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
                out.iter_mut().zip(products.iter().skip(row).step_by(rows)).for_each(|(out, product)| *out = *product);
            }
            out
        });
        let by_row = by_row.collect();
        products.into_iter().for_each(memory::keep);
        by_row
    }

    fn many_rows<'a, W: Weights<'a>>(
        self,
        weights: Vec<W>,
        multiply: impl FnOnce(&[f32], Vec<Product<'_, W>>),
    ) -> Vec<Vec<f32>> {
        let mut outs: Vec<_> = weights.iter().map(|weights| memory::stale(self.rows * weights.outputs())).collect();
        let products = weights.into_iter().zip(self.maps).zip(&mut outs).map(|((weights, map), out)| {
            let into = map.bias.as_ref().map_or(Into::Overwrite, |bias| Into::Bias(bias.all()));
            Product { weights, into, out }
        });
        multiply(self.x.all(), products.collect());
        for (map, out) in self.maps.iter().zip(&mut outs) {
            if let Some(Update { low, b, rank }) = &map.update {
                let product = Product { weights: Dense::new(b.all(), *rank), into: Into::Add, out };
                product::multiply(InstructionSet::detect(), low.all(), Over::Inputs, vec![product]);
            }
        }
        outs
    }
}

fn product_by_inputs<'a, W: Weights<'a>>(x: &[f32], products: Vec<Product<'_, W>>) {
    product::multiply(InstructionSet::detect(), x, Over::Inputs, products);
}

/// `out[w · rows + r] = x[r] · weights[w]`.
fn every_row_dot<T: Stored>(set: InstructionSet, x: &Rows, rows: usize, weights: Dense<T>, out: &mut [f32]) {
    for start in (0..rows).step_by(VECTORS) {
        let vectors: Vec<&[f32]> = (start..rows.min(start + VECTORS)).map(|row| x.row(row)).collect();
        weights.dots(set, &vectors, &mut out[start..], rows);
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
        let product = Product { weights, into: Into::Overwrite, out: &mut out };
        product::multiply(InstructionSet::detect(), self.grad, Over::Outputs, vec![product]);
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
    multiply(MatrixMut::new(&mut out, outputs, inputs, inputs), left, right, parallel);
    tensor(out, Shape::from(vec![outputs, inputs]))
}

/// A bias, which is read as f32.
fn in_f32(vector: FlexTensor) -> FlexTensor {
    if vector.dtype() == DType::F32 { vector } else { Flex::float_cast(vector, DType::F32.into()) }
}
