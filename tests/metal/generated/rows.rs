//! The cases of the kernels that give each row a cube: norms and softmax, forward and backward.

use super::arguments::{Arguments, Case, F, N, W, apple};
use super::elements::inside;
use super::gradients;
use crate::metal::{Dtype, reference, tables};
use crate::ops::oracle::Array;
use crate::ops::{add_layer_norm, add_rms_norm, layer_norm, norm_rope, rms_norm, softmax};
use crate::targets::cube::rows::{Plan, Rows};

use Dtype::{F16, F32};

const ROWS: usize = 3;
const EPSILON: f64 = 1e-5;

/// Lengths of rows, formats of the rows and of the weight, and whether the device has planes: planes of 32 as Apple's or the tree; one turn
/// of the units, several, a part of one; vectors of four, of two, of one.
const LAUNCHES: [(usize, [Dtype; 2], bool); 15] = [
    (1028, [F32, F32], true),
    (896, [F32, F32], false),
    (31, [F32, F32], true),
    (33, [F32, F32], false),
    (1, [F32, F32], true),
    (1, [F32, F32], false),
    (130, [F32, F32], true),
    (1025, [F32, F32], true),
    (1025, [F32, F32], false),
    (16384, [F32, F32], true),
    (16383, [F32, F32], true),
    (33, [F16, F16], true),
    (256, [F16, F16], false),
    (1025, [F16, F16], true),
    (896, [F16, F32], true),
];

/// One launch over rows.
pub(super) struct Launch {
    pub(super) formats: [Dtype; 2],
    pub(super) length: usize,
    pub(super) vectors: usize,
    pub(super) width: usize,
    pub(super) plan: Plan,
}

impl Launch {
    /// Random rows in the format of rows; `spoiled` ones have a NaN in the second row.
    fn rows(&self, seed: u64, spoiled: bool) -> Vec<f64> {
        let mut values = random(seed, ROWS * self.length, self.formats[0]);
        if spoiled {
            values[self.length + self.length * 2 / 3] = f64::NAN;
        }
        values
    }

    fn weight(&self, seed: u64) -> Vec<f64> {
        random(seed, self.length, self.formats[1])
    }

    /// The kernel's arguments.
    fn arguments(&self) -> Arguments {
        Arguments::new(self.width, self.formats)
    }

    /// Three rows on four cubes in two rows, as for more rows than an axis has cubes.
    fn finish(&self, arguments: Arguments, name: &str, more: &str) -> Case {
        let Plan { units, turns, plane } = self.plan;
        let what = format!(
            "rows of {} in {:?}, {units} units, planes of {plane}, {turns} vectors of {}{more}",
            self.length, self.formats, self.width
        );
        arguments.finish(name, what, [2, 2, 1], units as u32)
    }
}

pub(super) fn random(seed: u64, count: usize, format: Dtype) -> Vec<f64> {
    Array::random(seed, &[count]).values.into_iter().map(|value| format.round(value)).collect()
}

/// How Apple's processors are given rows of this shape, with planes or, as a device without them would be, with the tree.
fn on_apple(shape: &[usize], formats: [Dtype; 2], planes: bool) -> Rows {
    let size = formats[0].size().max(formats[1].size());
    let mut rows = Rows::on(&apple(), shape, size).expect("rows");
    assert_eq!(rows.plan.plane, 32);
    rows.plan.plane = if planes { 32 } else { 0 };
    rows
}

/// A case of each launch.
fn each(case: impl Fn(&Launch) -> Case) -> Vec<Case> {
    let mut cases = Vec::new();
    for (length, formats, planes) in LAUNCHES {
        let Rows { vectors, width, plan, .. } = on_apple(&[ROWS, length], formats, planes);
        cases.push(case(&Launch { formats, length, vectors: vectors as usize, width, plan }));
    }
    cases
}

pub(super) fn rms_norms() -> Vec<Case> {
    each(|launch| {
        let (x, weight) = (launch.rows(1, true), launch.weight(2));
        let mut a = launch.arguments();
        let (from, by) = (a.wide(&x), a.weight(&weight));
        let to = a.wide_output(reference::rms_norm(&x, &weight, EPSILON));
        let (rows, vectors, epsilon, dtypes) =
            (a.unsigned(ROWS), a.unsigned(launch.vectors), a.float(EPSILON), a.dtypes());
        let scope = &mut a.builder.scope;
        rms_norm::cube::norm::expand::<F, W, N>(
            scope,
            launch.width,
            from,
            by,
            to,
            rows,
            vectors,
            epsilon,
            launch.plan,
            dtypes,
        );
        launch.finish(a, "norm", "")
    })
}

pub(super) fn rms_norm_backwards() -> Vec<Case> {
    each(|launch| {
        let (x, weight, grad) = (launch.rows(1, true), launch.weight(2), launch.rows(3, false));
        let mut a = launch.arguments();
        let (from, by, along) = (a.wide(&x), a.weight(&weight), a.wide(&grad));
        let to = a.wide_output(gradients::rms_norm(&x, &weight, &grad, EPSILON));
        let (rows, vectors, epsilon, dtypes) =
            (a.unsigned(ROWS), a.unsigned(launch.vectors), a.float(EPSILON), a.dtypes());
        let scope = &mut a.builder.scope;
        rms_norm::cube::norm_backward::expand::<F, W, N>(
            scope,
            launch.width,
            from,
            by,
            along,
            to,
            rows,
            vectors,
            epsilon,
            launch.plan,
            dtypes,
        );
        launch.finish(a, "norm_backward", "")
    })
}

pub(super) fn norm_ropes() -> Vec<Case> {
    // Tokens, heads and their length; the first row written to; formats of the heads and of the weight; planes or the tree.
    let shapes = [
        ([5, 3, 6], 2, [F32, F32], true),
        ([1, 14, 64], 0, [F32, F32], false),
        ([7, 1, 128], 3, [F32, F32], true),
        ([1, 1, 2], 1, [F32, F32], true),
        ([3, 2, 2056], 0, [F32, F32], true),
        ([3, 2, 2056], 0, [F32, F32], false),
        ([6, 2, 34], 1, [F16, F16], true),
        ([5, 3, 128], 2, [F16, F32], true),
    ];
    let case = |([tokens, heads, dim], start, formats, planes): ([usize; 3], usize, [Dtype; 2], bool)| {
        let [cos, sin] = tables(tokens, dim, formats[0]);
        let (mut x, weight) = (random(1, tokens * heads * dim, formats[0]), random(4, dim, formats[1]));
        if tokens == 5 {
            x[7] = f64::NAN;
        }
        let halves = on_apple(&[tokens * heads, dim / 2], formats, planes);
        let plan = halves.plan;
        let turned = reference::rope(&reference::rms_norm(&x, &weight, EPSILON), &cos, &sin, heads, dim);
        let row = heads * dim;
        let mut a = Arguments::new(halves.width, formats);
        let (from, by, turn_cos, turn_sin) = (a.wide(&x), a.weight(&weight), a.wide(&cos), a.wide(&sin));
        let to = a.wide_output(inside(turned, start * row, 2 * start * row));
        let (rows, vectors) = (a.unsigned(tokens * heads), a.unsigned(halves.vectors as usize));
        let (per_token, first, epsilon) = (a.unsigned(heads), a.unsigned(start * heads), a.float(EPSILON));
        let dtypes = a.dtypes();
        let scope = &mut a.builder.scope;
        norm_rope::cube::norm_and_turn::expand::<F, W, N>(
            scope,
            halves.width,
            from,
            by,
            turn_cos,
            turn_sin,
            to,
            rows,
            vectors,
            per_token,
            first,
            epsilon,
            plan,
            dtypes,
        );
        let what = format!(
            "{tokens} tokens, {heads} heads of {dim} in {formats:?}, into row {start}, {} units, planes of {}",
            plan.units, plan.plane
        );
        // A cube too many, in two rows of them.
        a.finish("norm_and_turn", what, [(tokens * heads) as u32 / 2 + 1, 2, 1], plan.units as u32)
    };
    shapes.into_iter().map(case).collect()
}

pub(super) fn add_rms_norms() -> Vec<Case> {
    each(|launch| {
        let (x, residual, weight) = (launch.rows(1, false), launch.rows(2, true), launch.weight(3));
        // In a narrow format what is normed is not yet rounded.
        let sum: Vec<f64> = x.iter().zip(&residual).map(|(x, residual)| x + residual).collect();
        let mut a = launch.arguments();
        let (from, also, by) = (a.wide(&x), a.wide(&residual), a.weight(&weight));
        let normed = reference::rms_norm(&sum, &weight, EPSILON);
        let (sum, normed) = (a.wide_output(sum), a.wide_output(normed));
        let (rows, vectors, epsilon, dtypes) =
            (a.unsigned(ROWS), a.unsigned(launch.vectors), a.float(EPSILON), a.dtypes());
        let scope = &mut a.builder.scope;
        add_rms_norm::cube::add_norm::expand::<F, W, N>(
            scope,
            launch.width,
            from,
            also,
            by,
            sum,
            normed,
            rows,
            vectors,
            epsilon,
            launch.plan,
            dtypes,
        );
        launch.finish(a, "add_norm", "")
    })
}

pub(super) fn layer_norms() -> Vec<Case> {
    each(|launch| {
        let (x, weight, bias) = (launch.rows(1, true), launch.weight(2), launch.weight(3));
        let mut a = launch.arguments();
        let (from, by, plus) = (a.wide(&x), a.weight(&weight), a.weight(&bias));
        let to = a.wide_output(reference::layer_norm(&x, &weight, &bias, EPSILON));
        let (rows, vectors, epsilon, dtypes) =
            (a.unsigned(ROWS), a.unsigned(launch.vectors), a.float(EPSILON), a.dtypes());
        let scope = &mut a.builder.scope;
        layer_norm::cube::norm::expand::<F, W, N>(
            scope,
            launch.width,
            from,
            by,
            plus,
            to,
            rows,
            vectors,
            epsilon,
            launch.plan,
            dtypes,
        );
        launch.finish(a, "norm", "")
    })
}

pub(super) fn layer_norm_backwards() -> Vec<Case> {
    each(|launch| {
        let (x, weight, grad) = (launch.rows(1, true), launch.weight(2), launch.rows(3, false));
        let mut a = launch.arguments();
        let (from, by, along) = (a.wide(&x), a.weight(&weight), a.wide(&grad));
        let to = a.wide_output(gradients::layer_norm(&x, &weight, &grad, EPSILON));
        let (rows, vectors, epsilon, dtypes) =
            (a.unsigned(ROWS), a.unsigned(launch.vectors), a.float(EPSILON), a.dtypes());
        let scope = &mut a.builder.scope;
        layer_norm::cube::norm_backward::expand::<F, W, N>(
            scope,
            launch.width,
            from,
            by,
            along,
            to,
            rows,
            vectors,
            epsilon,
            launch.plan,
            dtypes,
        );
        launch.finish(a, "norm_backward", "")
    })
}

pub(super) fn add_layer_norms() -> Vec<Case> {
    each(|launch| {
        let (x, residual) = (launch.rows(1, false), launch.rows(2, true));
        let (weight, bias) = (launch.weight(3), launch.weight(4));
        let sum: Vec<f64> = x.iter().zip(&residual).map(|(x, residual)| x + residual).collect();
        let mut a = launch.arguments();
        let (from, also, by, plus) = (a.wide(&x), a.wide(&residual), a.weight(&weight), a.weight(&bias));
        let to = a.wide_output(reference::layer_norm(&sum, &weight, &bias, EPSILON));
        let (rows, vectors, epsilon, dtypes) =
            (a.unsigned(ROWS), a.unsigned(launch.vectors), a.float(EPSILON), a.dtypes());
        let scope = &mut a.builder.scope;
        add_layer_norm::cube::add_norm::expand::<F, W, N>(
            scope,
            launch.width,
            from,
            also,
            by,
            plus,
            to,
            rows,
            vectors,
            epsilon,
            launch.plan,
            dtypes,
        );
        launch.finish(a, "add_norm", "")
    })
}

/// With a mask of two rows, of which one is −∞ here and there; with one of a single row that is −∞; without.
pub(super) fn softmaxes() -> Vec<Case> {
    let masked = |launch: &Launch, mask_rows: usize| {
        let x = launch.rows(1, mask_rows != 1);
        let mut mask: Vec<f64> = random(2, mask_rows.max(1) * launch.length, launch.formats[1]);
        if mask_rows == 1 {
            mask.fill(f64::NEG_INFINITY);
        }
        for (at, value) in mask.iter_mut().enumerate().skip(1) {
            *value = if at % 3 == 0 { f64::NEG_INFINITY } else { *value };
        }
        let scale = 3.5;
        let expected = reference::softmax(&x, launch.length, scale, (mask_rows > 0).then_some(mask.as_slice()));
        let mut a = launch.arguments();
        let (from, plus, to) = (a.wide(&x), a.weight(&mask), a.wide_output(expected));
        let (rows, vectors) = (a.unsigned(ROWS), a.unsigned(launch.vectors));
        let (mask_count, scale, dtypes) = (a.unsigned(mask_rows.max(1)), a.float(scale), a.dtypes());
        let scope = &mut a.builder.scope;
        softmax::cube::exponentials::expand::<F, W, N>(
            scope,
            launch.width,
            from,
            plus,
            to,
            rows,
            vectors,
            mask_count,
            scale,
            mask_rows > 0,
            launch.plan,
            dtypes,
        );
        launch.finish(a, "exponentials", &format!(", {mask_rows} rows of mask"))
    };
    let mut cases = each(|launch| masked(launch, 2));
    // One with planes and one with the tree, of each kind.
    cases.extend([0, 1].into_iter().flat_map(|mask_rows| each(|launch| masked(launch, mask_rows)).into_iter().take(2)));
    cases
}

pub(super) fn softmax_backwards() -> Vec<Case> {
    each(|launch| {
        // The forward's rows are powers that sum up to one.
        let y: Vec<f64> = reference::softmax(&launch.rows(1, true), launch.length, 1.0, None);
        let y: Vec<f64> = y.into_iter().map(|value| launch.formats[0].round(value)).collect();
        let (grad, scale) = (launch.rows(2, false), 0.125);
        let expected = gradients::softmax(&y, &grad, launch.length, scale);
        let mut a = launch.arguments();
        let (from, along, to) = (a.wide(&y), a.wide(&grad), a.wide_output(expected));
        let (rows, vectors, scale, dtypes) = (a.unsigned(ROWS), a.unsigned(launch.vectors), a.float(scale), a.dtypes());
        let scope = &mut a.builder.scope;
        softmax::cube::exponentials_backward::expand::<F, N>(
            scope,
            launch.width,
            from,
            along,
            to,
            rows,
            vectors,
            scale,
            launch.plan,
            dtypes[0],
        );
        launch.finish(a, "exponentials_backward", "")
    })
}
