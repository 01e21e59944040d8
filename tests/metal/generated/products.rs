//! The cases of the kernels that multiply, a few rows times a weight, a few queries over the keys of a cache, and of what unpacks a weight.

use cubecl::ir::StorageType;
use cubecl::prelude::*;
use half::f16;

use super::arguments::{Arguments, Bound, Case, M, Matrix, N, W, storage, word};
use super::rows::random;
use crate::metal::Dtype;
use crate::ops::{attention, embedding, linear, linears};
use crate::packed::{Format, Packed};
use crate::targets::cube::packed::{Plan, words};

use Dtype::{F16, F32};

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// How a weight is stored: value by value, or packed in blocks of so many, with offsets or without.
#[derive(Clone, Copy, Debug)]
enum Stored {
    In(Dtype),
    Packed(Format, usize, bool),
}

use Stored::{In, Packed as InBlocks};

impl Stored {
    fn plan(self) -> Option<Plan> {
        match self {
            In(_) => None,
            InBlocks(format, block, offsets) => Some(Plan::new(format, block, offsets)),
        }
    }

    /// The arguments of a kernel of such weights, in vectors as wide as rows of so many inputs allow.
    fn arguments(self, inputs: usize) -> Arguments {
        let width = [4, 2, 1].into_iter().find(|width| inputs % width == 0).expect("one divides everything");
        match self {
            In(format) => Arguments::new(width, [F32, format]),
            InBlocks(..) => Arguments::with_words(width),
        }
    }

    fn dtype(self) -> StorageType {
        match self {
            In(format) => storage(format),
            InBlocks(..) => word(),
        }
    }
}

/// A packed matrix of random values.
fn random_blocks(seed: u64, shape: [usize; 2], format: Format, block: usize, offsets: bool) -> Packed {
    let values: Vec<f32> = random(seed, shape[0] * shape[1], F32).into_iter().map(|value| value as f32).collect();
    let packed = Packed::pack(format, shape, &values).expect("values that can be packed");
    let mut scales: Vec<f16> = packed.scales.iter().flat_map(|&scale| [scale].repeat(packed.block / block)).collect();
    // One that f16 has no more than ten bits for, and a negative one.
    scales[0] = f16::from_f32(3e-6);
    if let Some(scale) = scales.get_mut(1) {
        *scale = -*scale;
    }
    let offsets = offsets.then(|| (0..scales.len()).map(|at| f16::from_f32(0.1 * (at as f32).cos())).collect());
    Packed { block, scales, offsets, ..packed }
}

/// A linear map.
struct Map {
    inputs: usize,
    outputs: usize,
    weight: Vec<f64>,
    words: Option<Vec<u32>>,
    bias: Option<Vec<f64>>,
}

impl Map {
    /// With a bias where the outputs are an odd number.
    fn random(seed: u64, [inputs, outputs]: [usize; 2], stored: Stored) -> Self {
        let bias = (outputs % 2 == 1).then(|| random(10 + seed, outputs, F32));
        let (weight, words) = match stored {
            In(format) => (random(seed, outputs * inputs, format), None),
            InBlocks(format, block, offsets) => {
                let packed = random_blocks(seed, [outputs, inputs], format, block, offsets);
                (packed.unpacked().into_iter().map(f64::from).collect(), Some(words(&packed)))
            }
        };
        Self { inputs, outputs, weight, words, bias }
    }

    /// `x · Wᵀ + b`, row by row.
    fn products(&self, x: &[f64]) -> Vec<f64> {
        let bias = |output: usize| self.bias.as_ref().map_or(0.0, |bias| bias[output]);
        let of_row = |x| {
            let rows = self.weight.chunks_exact(self.inputs).enumerate();
            rows.map(move |(output, weight)| dot(x, weight) + bias(output))
        };
        x.chunks_exact(self.inputs).flat_map(of_row).collect()
    }

    fn weight(&self, a: &mut Arguments) -> Bound<Matrix> {
        match &self.words {
            Some(words) => a.words::<Matrix>(words),
            None => a.matrix(&self.weight),
        }
    }

    fn bias(&self, a: &mut Arguments) -> Option<Bound<Tensor<f32>>> {
        self.bias.as_ref().map(|bias| a.plain(bias))
    }
}

/// A buffer that a kernel may be launched without.
fn option<T: CubeType>(buffer: Option<T::ExpandType>) -> ComptimeOptionExpand<T> {
    buffer.map_or(ComptimeOptionExpand::None, ComptimeOptionExpand::Some)
}

/// Rows of `inputs` values; of three the second begins with no number.
fn random_rows(rows: usize, inputs: usize) -> Vec<f64> {
    let mut x = random(1, rows * inputs, F32);
    if rows == 3 {
        x[inputs] = f64::NAN;
    }
    x
}

/// Rows, inputs and outputs, the rank of an adapter, and how the weight is stored.
pub(super) fn single_linears() -> Vec<Case> {
    let shapes = [
        ([3, 896, 9], 5, In(F16)),
        ([1, 1, 1], 0, In(F32)),
        ([3, 31, 5], 65, In(F32)),
        ([2, 130, 4], 0, In(F16)),
        ([8, 256, 3], 8, In(F32)),
        ([1, 1028, 2], 130, In(F32)),
        ([8, 65, 7], 0, In(F16)),
        ([3, 896, 9], 0, InBlocks(Format::Q8, 32, false)),
        ([1, 96, 5], 3, InBlocks(Format::Q8, 16, true)),
        ([2, 1056, 4], 0, InBlocks(Format::Q4, 32, false)),
        ([8, 32, 1], 0, InBlocks(Format::Q4, 32, true)),
        ([1, 160, 3], 5, InBlocks(Format::Q4, 16, true)),
        ([2, 192, 5], 0, InBlocks(Format::Q8, 64, false)),
    ];
    let case = |([rows, inputs, outputs], rank, stored): ([usize; 3], usize, Stored)| {
        let (x, map, scale) = (random_rows(rows, inputs), Map::random(2, [inputs, outputs], stored), 2.0);
        let (low, b) = (random(4, rows * rank, F32), random(5, outputs * rank, F32));
        let update = |at: usize| dot(&low[at / outputs * rank..][..rank], &b[at % outputs * rank..][..rank]);
        let expected = map.products(&x).into_iter().enumerate().map(|(at, sum)| sum + scale * update(at)).collect();
        let mut a = stored.arguments(inputs);
        let (width, from, by, plus) = (a.width(), a.floats(&x), map.weight(&mut a), map.bias(&mut a));
        let [down, up] = [&low, &b].map(|matrix| option((rank > 0).then(|| a.plain(matrix))));
        let to = a.plain_output(expected);
        let (vectors, columns, ranks) = (a.unsigned(inputs / width), a.unsigned(outputs), a.unsigned(rank));
        let factor = a.float(scale);
        linear::cube::rows_times_weight::expand::<W, N, M>(
            &mut a.builder.scope,
            width,
            if map.words.is_some() { 1 } else { width },
            from,
            by,
            option(plus),
            down,
            up,
            to,
            vectors,
            columns,
            ranks,
            factor,
            rows,
            64,
            stored.plan(),
            stored.dtype(),
        );
        // Cubes more than there are outputs, in a second layer, as for a vocabulary longer than one axis.
        let grid = [outputs.div_ceil(2) as u32 + 1, 1, 2];
        let what = format!("{rows} rows of {inputs} in vectors of {width} times {outputs} {stored:?}, rank {rank}");
        Case { tolerance: 1e-5, ..a.finish("rows_times_weight", what, grid, 64) }
    };
    shapes.into_iter().map(case).collect()
}

/// Rows, inputs and the outputs of each weight, and how the weights are stored.
pub(super) fn several_linears() -> Vec<Case> {
    let shapes: [(_, &[usize], _); 7] = [
        ([3, 896], &[9, 4, 3], In(F16)),
        ([1, 1], &[1, 1], In(F32)),
        ([2, 130], &[6, 5], In(F16)),
        ([8, 256], &[3, 1, 2], In(F32)),
        ([1, 65], &[2, 8, 7], In(F32)),
        ([3, 96], &[5, 2, 3], InBlocks(Format::Q8, 32, false)),
        ([1, 64], &[4, 7], InBlocks(Format::Q4, 32, true)),
    ];
    let case = |([rows, inputs], outputs, stored): ([usize; 2], &[usize], Stored)| {
        let x = random_rows(rows, inputs);
        let maps: Vec<Map> =
            (2..).zip(outputs).map(|(seed, &outputs)| Map::random(seed, [inputs, outputs], stored)).collect();
        let mut a = stored.arguments(inputs);
        let (width, from) = (a.width(), a.floats(&x));
        let mut weights = maps.iter().map(|map| map.weight(&mut a)).collect::<Vec<_>>().into_iter();
        let [first, second, third] = std::array::from_fn(|_| weights.next());
        let [first_bias, second_bias, third_bias] =
            std::array::from_fn(|at| option(maps.get(at).and_then(|map| map.bias(&mut a))));
        let expected: Vec<Vec<f64>> = maps.iter().map(|map| map.products(&x)).collect();
        let starts: Vec<usize> = (0..3).map(|at| expected.iter().take(at).map(Vec::len).sum()).collect();
        let to = a.plain_output(expected.concat());
        let vectors = a.unsigned(inputs / width);
        let [one, two, three] = std::array::from_fn(|at| a.unsigned(maps.get(at).map_or(0, |map| map.outputs)));
        let [second_start, third_start] = [1, 2].map(|at| a.unsigned(starts[at]));
        linears::cube::rows_times_weights::expand::<W, N, M>(
            &mut a.builder.scope,
            width,
            if maps[0].words.is_some() { 1 } else { width },
            from,
            first.expect("two weights"),
            second.expect("two weights"),
            option(third),
            first_bias,
            second_bias,
            third_bias,
            to,
            vectors,
            one,
            two,
            three,
            second_start,
            third_start,
            rows,
            64,
            stored.plan(),
            stored.dtype(),
        );
        let grid = [outputs.iter().sum::<usize>().div_ceil(2) as u32 + 1, 1, 2];
        let what = format!("{rows} rows of {inputs} in vectors of {width} times {outputs:?} {stored:?}");
        Case { tolerance: 1e-5, ..a.finish("rows_times_weights", what, grid, 64) }
    };
    shapes.into_iter().map(case).collect()
}

/// The shape of a table, how it is packed, and the rows that are asked for, or all.
pub(super) fn tables() -> Vec<Case> {
    let tables: [(_, _, Option<&[i32]>); 6] = [
        ([7, 64], (Format::Q8, 32, false), Some(&[6, 0, 6])),
        ([5, 96], (Format::Q4, 32, false), None),
        ([3, 160], (Format::Q4, 16, true), Some(&[2])),
        ([1, 32], (Format::Q4, 32, true), None),
        ([9, 32], (Format::Q8, 16, true), None),
        ([3, 192], (Format::Q8, 64, true), Some(&[1, 2])),
    ];
    let case =
        |([outputs, inputs], (format, block, offsets), asked): ([usize; 2], (Format, usize, bool), Option<&[i32]>)| {
            let packed = random_blocks(3, [outputs, inputs], format, block, offsets);
            let values = packed.unpacked();
            let rows = asked.map_or_else(|| (0..outputs as i32).collect(), <[i32]>::to_vec);
            let row = |&id: &i32| values[id as usize * inputs..][..inputs].iter().map(|&value| f64::from(value));
            let mut a = Arguments::with_words(1);
            let from = a.words::<Tensor<Vector<u32, M>>>(&words(&packed));
            let ids = option(asked.map(|ids| a.ids(ids)));
            let to = a.plain_output(rows.iter().flat_map(row).collect());
            let of_row = inputs * format.bits() / 32;
            let [count, per_row, all] = [rows.len(), of_row, outputs].map(|number| a.unsigned(number));
            let plan = Plan::new(format, block, offsets);
            embedding::cube::unpack_rows::expand::<M>(
                &mut a.builder.scope,
                1,
                from,
                ids,
                to,
                count,
                per_row,
                all,
                plan,
            );
            let grid = [(rows.len() * of_row).div_ceil(64) as u32, 1, 1];
            let what =
                format!("{rows:?} of {outputs} rows of {inputs}, {format:?} in blocks of {block}, offsets: {offsets}");
            a.finish("unpack_rows", what, grid, 64)
        };
    tables.into_iter().map(case).collect()
}

/// Heads, heads of the keys, the width of a head; and for each query the first key it sees and how many.
type Attention = ([usize; 3], &'static [[u32; 2]]);

pub(super) fn attentions() -> Vec<Case> {
    let launches: [Attention; 7] = [
        ([4, 2, 64], &[[3, 300], [0, 128], [2, 1]]),
        ([2, 1, 5], &[[1, 129], [0, 3]]),
        ([1, 1, 130], &[[0, 40], [7, 257]]),
        ([2, 2, 256], &[[5, 20], [0, 1]]),
        ([2, 1, 64], &[[2, 200]]),
        ([3, 1, 1], &[[0, 2]]),
        ([2, 2, 33], &[[1, 130]]),
    ];
    launches.into_iter().map(|launch| attention_case(launch, 128)).collect()
}

fn attention_case(([heads, kv_heads, dim], seen): Attention, units: usize) -> Case {
    let (rows, group, scale) = (seen.len(), heads / kv_heads, 0.7);
    let keys = seen.iter().map(|[first, count]| (first + count) as usize).max().expect("a query") + 1;
    let (mut q, k) = (random(1, rows * heads * dim, F32), random(2, keys * kv_heads * dim, F32));
    let mut v = random(3, keys * kv_heads * dim, F32);
    if rows > 1 {
        // One head of one query, and one column of the last key that a query sees.
        q[heads * dim] = f64::NAN;
        v[((seen[0][0] + seen[0][1] - 1) as usize * kv_heads) * dim] = f64::NAN;
    }
    let mut expected = Vec::new();
    for (row, head) in (0..rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let place = |key: usize| (key * kv_heads + head / group) * dim;
        let visible = seen[row][0] as usize..(seen[row][0] + seen[row][1]) as usize;
        let query = &q[(row * heads + head) * dim..][..dim];
        let scores: Vec<f64> = visible.clone().map(|key| scale * dot(query, &k[place(key)..][..dim])).collect();
        let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = scores.iter().map(|score| (score - peak).exp()).collect();
        let total: f64 = powers.iter().sum();
        let mixed = |at| visible.clone().zip(&powers).map(|(key, power)| power * v[place(key) + at]).sum::<f64>();
        expected.extend((0..dim).map(|at| mixed(at) / total));
    }
    let width = [4, 2, 1].into_iter().find(|width| dim % width == 0).expect("one divides everything");
    let lanes = dim.next_power_of_two().min(units);
    let mut a = Arguments::new(width, [F32, F32]);
    let (queries, by, from) = (a.floats(&q), a.floats(&k), a.plain(&v));
    let several = match seen {
        [_] => ComptimeOptionExpand::None,
        _ => ComptimeOptionExpand::Some(a.numbers(seen.as_flattened())),
    };
    let to = a.plain_output(expected);
    let (first, count) = (a.unsigned(seen[0][0] as usize), a.unsigned(seen[0][1] as usize));
    let (factor, per_key, key_heads) = (a.float(scale), a.unsigned(group), a.unsigned(kv_heads));
    let (scope, vectors) = (&mut a.builder.scope, dim / width);
    attention::cube::attend::expand::<N>(
        scope, width, queries, by, from, several, to, first, count, factor, per_key, key_heads, dim, vectors, units,
        lanes,
    );
    let what = format!("{heads} heads of {dim} over {kv_heads}, queries that see {seen:?}");
    Case { tolerance: 1e-5, ..a.finish("attend", what, [heads as u32, rows as u32, 1], units as u32) }
}
