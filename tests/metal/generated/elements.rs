//! The cases of the kernels that give each element, vector or pair a unit: gates, rotation, rows of a cache.

use super::arguments::{Arguments, Case, F, N, W, apple};
use super::gradients;
use super::rows::random;
use crate::metal::{Dtype, reference, tables};
use crate::ops::{gelu, rope, swiglu, write_rows};
use crate::targets::cube::rows::Elements;

use Dtype::{F16, F32};

const ROWS: usize = 3;
/// Units of a cube that turns pairs or places values.
const UNITS: usize = 64;

/// Lengths of rows and formats of the rows and of the bias: vectors of four, of two, of one, of less than a cube and of more.
const LAUNCHES: [(usize, [Dtype; 2]); 7] = [
    (896, [F32, F32]),
    (31, [F32, F32]),
    (1, [F32, F32]),
    (130, [F32, F32]),
    (1028, [F16, F16]),
    (33, [F16, F16]),
    (36, [F16, F32]),
];

/// Values around which functions saturate or overflow.
const LARGE: [f64; 10] = [0.0, 1e-3, 5.6, 5.65, 5.66, 8.0, 88.0, 89.0, 100.0, 6e4];

struct Launch {
    formats: [Dtype; 2],
    length: usize,
    elements: Elements,
}

impl Launch {
    /// Three random rows, a NaN in the second one if they are the spoiled ones, and large values in the third one.
    fn rows(&self, seed: u64, spoiled: bool) -> Vec<f64> {
        let format = self.formats[0];
        let mut values: Vec<f64> =
            random(seed, ROWS * self.length, F32).iter().map(|v| format.round(v * 6.0)).collect();
        if spoiled {
            values[self.length + self.length * 2 / 3] = f64::NAN;
            for (value, large) in values[2 * self.length..].iter_mut().zip(LARGE.iter().flat_map(|&v| [v, -v])) {
                *value = format.round(large);
            }
        }
        values
    }

    fn arguments(&self) -> Arguments {
        Arguments::new(self.elements.width, self.formats)
    }

    fn finish(&self, arguments: Arguments, name: &str, more: &str) -> Case {
        let what = format!("rows of {} in {:?}, vectors of {}{more}", self.length, self.formats, self.elements.width);
        let units = self.elements.units.x;
        // A cube too many, in two rows of them.
        arguments.finish(name, what, [self.elements.vectors.div_ceil(units) / 2 + 1, 2, 1], units)
    }
}

fn each(case: impl Fn(&Launch) -> Case) -> Vec<Case> {
    let launch = |(length, formats): (usize, [Dtype; 2])| {
        let size = formats[0].size().max(formats[1].size());
        Launch { formats, length, elements: Elements::on(&apple(), &[ROWS, length], size).expect("elements") }
    };
    LAUNCHES.into_iter().map(launch).map(|launch| case(&launch)).collect()
}

pub(super) fn swiglus() -> Vec<Case> {
    each(|launch| {
        let (gate, up) = (launch.rows(1, true), launch.rows(2, false));
        let mut a = launch.arguments();
        let (from, by, to) = (a.wide(&gate), a.wide(&up), a.wide_output(reference::swiglu(&gate, &up)));
        let (vectors, dtypes) = (a.unsigned(launch.elements.vectors as usize), a.dtypes());
        let (scope, width) = (&mut a.builder.scope, launch.elements.width);
        swiglu::cube::gated::expand::<F, N>(scope, width, from, by, to, vectors, dtypes[0]);
        launch.finish(a, "gated", "")
    })
}

pub(super) fn swiglu_backwards() -> Vec<Case> {
    each(|launch| {
        let (gate, up, grad) = (launch.rows(1, true), launch.rows(2, false), random(3, 3 * launch.length, F16));
        let mut a = launch.arguments();
        let (from, by, along) = (a.wide(&gate), a.wide(&up), a.wide(&grad));
        let (d_gate, d_up) = gradients::swiglu(&gate, &up, &grad);
        let (d_gate, d_up) = (a.wide_output(d_gate), a.wide_output(d_up));
        let (vectors, dtypes) = (a.unsigned(launch.elements.vectors as usize), a.dtypes());
        let (scope, width) = (&mut a.builder.scope, launch.elements.width);
        swiglu::cube::gated_backward::expand::<F, N>(scope, width, from, by, along, d_gate, d_up, vectors, dtypes[0]);
        launch.finish(a, "gated_backward", "")
    })
}

pub(super) fn gelus() -> Vec<Case> {
    let biased = |launch: &Launch, has_bias: bool| {
        let x = launch.rows(1, true);
        let bias = if has_bias { random(2, launch.length, launch.formats[1]) } else { x.clone() };
        let mut a = launch.arguments();
        let expected = reference::gelu(&x, has_bias.then_some(bias.as_slice()));
        let (from, plus, to) = (a.wide(&x), a.weight(&bias), a.wide_output(expected));
        let vectors = a.unsigned(launch.elements.vectors as usize);
        let (row, dtypes) = (a.unsigned(bias.len() / launch.elements.width), a.dtypes());
        let (scope, width) = (&mut a.builder.scope, launch.elements.width);
        gelu::cube::activated::expand::<F, W, N>(scope, width, from, plus, to, vectors, row, has_bias, dtypes);
        launch.finish(a, "activated", if has_bias { ", a bias" } else { "" })
    };
    let mut cases = each(|launch| biased(launch, true));
    cases.extend(each(|launch| biased(launch, false)));
    cases
}

pub(super) fn gelu_backwards() -> Vec<Case> {
    let biased = |launch: &Launch, has_bias: bool| {
        let (x, grad) = (launch.rows(1, true), random(3, ROWS * launch.length, F16));
        let bias = if has_bias { random(2, launch.length, launch.formats[1]) } else { x.clone() };
        let mut a = launch.arguments();
        let expected = gradients::gelu(&x, has_bias.then_some(bias.as_slice()), &grad);
        let (from, plus, along, to) = (a.wide(&x), a.weight(&bias), a.wide(&grad), a.wide_output(expected));
        let vectors = a.unsigned(launch.elements.vectors as usize);
        let (row, dtypes) = (a.unsigned(bias.len() / launch.elements.width), a.dtypes());
        let (scope, width) = (&mut a.builder.scope, launch.elements.width);
        gelu::cube::activated_backward::expand::<F, W, N>(
            scope, width, from, plus, along, to, vectors, row, has_bias, dtypes,
        );
        launch.finish(a, "activated_backward", if has_bias { ", a bias" } else { "" })
    };
    let mut cases = each(|launch| biased(launch, true));
    cases.extend(each(|launch| biased(launch, false)));
    cases
}

/// What is written into a longer tensor leaves the rest of it as it was.
pub(super) fn inside(written: Vec<f64>, before: usize, after: usize) -> Vec<f64> {
    [vec![f64::NAN; before], written, vec![f64::NAN; after]].concat()
}

pub(super) fn ropes() -> Vec<Case> {
    let shapes = [
        ([5, 3, 6], 2, F32),
        ([1, 14, 64], 0, F32),
        ([7, 1, 128], 3, F32),
        ([1, 1, 2], 1, F32),
        ([60, 2, 34], 0, F32),
        ([5, 3, 34], 2, F16),
    ];
    let case = |([tokens, heads, dim], start, format): ([usize; 3], usize, Dtype)| {
        let [cos, sin] = tables(tokens, dim, format);
        let mut x = random(1, tokens * heads * dim, format);
        if tokens == 5 {
            x[7] = f64::NAN;
        }
        let row = heads * dim;
        let mut a = Arguments::new(1, [format, format]);
        let turned = reference::rope(&x, &cos, &sin, heads, dim);
        let (from, turn_cos, turn_sin) = (a.elements(&x), a.elements(&cos), a.elements(&sin));
        let to = a.output_of_elements(inside(turned, start * row, 2 * start * row));
        let pairs = tokens * row / 2;
        let (count, half) = (a.unsigned(pairs), a.unsigned(dim / 2));
        let (per_token, first, dtypes) = (a.unsigned(heads), a.unsigned(start * row), a.dtypes());
        let scope = &mut a.builder.scope;
        rope::cube::turn_pairs::expand::<F>(
            scope, from, turn_cos, turn_sin, to, count, half, per_token, first, dtypes[0],
        );
        let what = format!("{tokens} tokens, {heads} heads of {dim} in {format:?}, into row {start}");
        a.finish("turn_pairs", what, [(pairs.div_ceil(UNITS) / 2 + 1) as u32, 2, 1], UNITS as u32)
    };
    shapes.into_iter().map(case).collect()
}

pub(super) fn written_rows() -> Vec<Case> {
    let launches = [(1, 0, F32), (64, 64, F32), (129, 33, F32), (300, 7, F16)];
    let case = |(count, start, format): (usize, usize, Dtype)| {
        let mut values = random(1, count, format);
        values[count / 2] = f64::NAN;
        let mut a = Arguments::new(1, [format, format]);
        let (from, to) = (a.elements(&values), a.output_of_elements(inside(values, start, 5)));
        let (number, first, dtypes) = (a.unsigned(count), a.unsigned(start), a.dtypes());
        let scope = &mut a.builder.scope;
        write_rows::cube::place_values::expand::<F>(scope, from, to, number, first, dtypes[0]);
        let what = format!("{count} values in {format:?} from {start} on");
        a.finish("place_values", what, [(count.div_ceil(UNITS) / 2 + 1) as u32, 2, 1], UNITS as u32)
    };
    launches.into_iter().map(case).collect()
}
