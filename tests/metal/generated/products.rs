//! The cases of the kernels that multiply: a few rows times a weight, a few queries over the keys of a cache.

use cubecl::prelude::*;

use super::arguments::{Arguments, Case, N, W};
use super::rows::random;
use crate::metal::Dtype;
use crate::ops::{attention, linear, linears};

use Dtype::{F16, F32};

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Rows, inputs and outputs, the rank of an adapter, and the weight's format; a bias where the outputs are an odd number.
pub(super) fn single_linears() -> Vec<Case> {
    let shapes = [
        ([3, 896, 9], 5, F16),
        ([1, 1, 1], 0, F32),
        ([3, 31, 5], 65, F32),
        ([2, 130, 4], 0, F16),
        ([8, 256, 3], 8, F32),
        ([1, 1028, 2], 130, F32),
        ([8, 65, 7], 0, F16),
    ];
    let case = |([rows, inputs, outputs], rank, format): ([usize; 3], usize, Dtype)| {
        let width = [4, 2, 1].into_iter().find(|width| inputs % width == 0).expect("one divides everything");
        let (mut x, weight) = (random(1, rows * inputs, F32), random(2, outputs * inputs, format));
        let (bias, scale) = ((outputs % 2 == 1).then(|| random(3, outputs, F32)), 2.0);
        let (low, b) = (random(4, rows * rank, F32), random(5, outputs * rank, F32));
        if rows == 3 {
            x[inputs] = f64::NAN;
        }
        let product = |at: usize| {
            let (row, output) = (at / outputs, at % outputs);
            let update = dot(&low[row * rank..][..rank], &b[output * rank..][..rank]);
            dot(&x[row * inputs..][..inputs], &weight[output * inputs..][..inputs])
                + bias.as_ref().map_or(0.0, |bias| bias[output])
                + scale * update
        };
        let expected = (0..rows * outputs).map(product).collect();
        let mut a = Arguments::new(width, [F32, format]);
        let (from, by) = (a.floats(&x), a.weight(&weight));
        let plus = bias.as_ref().map_or(ComptimeOptionExpand::None, |bias| ComptimeOptionExpand::Some(a.plain(bias)));
        let (down, up) = if rank > 0 {
            (ComptimeOptionExpand::Some(a.plain(&low)), ComptimeOptionExpand::Some(a.plain(&b)))
        } else {
            (ComptimeOptionExpand::None, ComptimeOptionExpand::None)
        };
        let to = a.plain_output(expected);
        let (vectors, columns, ranks) = (a.unsigned(inputs / width), a.unsigned(outputs), a.unsigned(rank));
        let (factor, dtypes) = (a.float(scale), a.dtypes());
        let scope = &mut a.builder.scope;
        linear::cube::rows_times_weight::expand::<W, N>(
            scope, width, from, by, plus, down, up, to, vectors, columns, ranks, factor, rows, 64, dtypes[1],
        );
        // Cubes more than there are outputs, in a second layer, as for a vocabulary longer than one axis.
        let grid = [outputs.div_ceil(2) as u32 + 1, 1, 2];
        let what = format!("{rows} rows of {inputs} in vectors of {width} times {outputs} in {format:?}, rank {rank}");
        Case { tolerance: 1e-5, ..a.finish("rows_times_weight", what, grid, 64) }
    };
    shapes.into_iter().map(case).collect()
}

/// Rows, inputs and the outputs of each weight, and the weights' format; a bias where the outputs are an odd number.
pub(super) fn several_linears() -> Vec<Case> {
    let shapes: [(_, &[usize], _); 5] = [
        ([3, 896], &[9, 4, 3], F16),
        ([1, 1], &[1, 1], F32),
        ([2, 130], &[6, 5], F16),
        ([8, 256], &[3, 1, 2], F32),
        ([1, 65], &[2, 8, 7], F32),
    ];
    let case = |([rows, inputs], outputs, format): ([usize; 2], &[usize], Dtype)| {
        let width = [4, 2, 1].into_iter().find(|width| inputs % width == 0).expect("one divides everything");
        let mut x = random(1, rows * inputs, F32);
        if rows == 3 {
            x[inputs] = f64::NAN;
        }
        let mut a = Arguments::new(width, [F32, format]);
        let from = a.floats(&x);
        let maps: Vec<_> = (2..)
            .zip(outputs)
            .map(|(seed, &outputs)| {
                let bias = (outputs % 2 == 1).then(|| random(10 + seed, outputs, F32));
                (outputs, random(seed, outputs * inputs, format), bias)
            })
            .collect();
        let mut starts = vec![0];
        let mut expected = Vec::new();
        for (outputs, weight, bias) in &maps {
            for at in 0..rows * outputs {
                let (row, output) = (at / outputs, at % outputs);
                let bias = bias.as_ref().map_or(0.0, |bias| bias[output]);
                expected.push(dot(&x[row * inputs..][..inputs], &weight[output * inputs..][..inputs]) + bias);
            }
            starts.push(expected.len());
        }
        let weights: Vec<_> = maps.iter().map(|(_, weight, _)| a.weight(weight)).collect();
        let option = |value: Option<_>| value.map_or(ComptimeOptionExpand::None, ComptimeOptionExpand::Some);
        let [first, second, third] = std::array::from_fn(|at| weights.get(at).cloned());
        let [first_bias, second_bias, third_bias] = std::array::from_fn(|at| {
            option(maps.get(at).and_then(|(_, _, bias)| bias.as_ref().map(|bias| a.plain(bias))))
        });
        let (first, second) = (first.expect("two weights"), second.expect("two weights"));
        let third = third.map_or(ComptimeOptionExpand::None, ComptimeOptionExpand::Some);
        let to = a.plain_output(expected);
        let vectors = a.unsigned(inputs / width);
        let [one, two, three] = std::array::from_fn(|at| a.unsigned(outputs.get(at).copied().unwrap_or(0)));
        let [second_start, third_start] = [1, 2].map(|at| a.unsigned(starts.get(at).copied().unwrap_or(0)));
        let dtypes = a.dtypes();
        linears::cube::rows_times_weights::expand::<W, N>(
            &mut a.builder.scope,
            width,
            from,
            first,
            second,
            third,
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
            dtypes[1],
        );
        let grid = [outputs.iter().sum::<usize>().div_ceil(2) as u32 + 1, 1, 2];
        let what = format!("{rows} rows of {inputs} in vectors of {width} times {outputs:?} in {format:?}");
        Case { tolerance: 1e-5, ..a.finish("rows_times_weights", what, grid, 64) }
    };
    shapes.into_iter().map(case).collect()
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
