//! What each op is run on: rows of many lengths, NaN, values at the limits; and how near to f64 it has to come.

use half::f16;

use super::machine::{Buffer, Run};
use super::reference;
use crate::ops::oracle::Array;
use crate::targets::shader::{self, Launch};

/// What the shaders are written for.
pub(super) const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::F16];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Dtype {
    F32,
    F16,
}

impl Dtype {
    /// The value nearest in this dtype.
    pub(crate) fn round(self, value: f64) -> f64 {
        match self {
            Self::F32 => f64::from(value as f32),
            Self::F16 => f16::from_f64(value).to_f64(),
        }
    }

    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    pub(crate) fn bytes(self, values: &[f64]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn values(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
        }
    }
}

/// One launch and what must come of it.
pub(super) struct Case {
    pub(super) what: String,
    launch: Launch,
    inputs: Vec<Vec<f64>>,
    expected: Vec<Vec<f64>>,
}

impl Case {
    /// As a Mac would launch it.
    pub(super) fn run(&self, dtype: Dtype) -> Run {
        let mut buffers: Vec<Buffer> = self.inputs.iter().map(|values| Buffer::input(dtype.bytes(values))).collect();
        assert_eq!(self.launch.outputs, self.expected.len());
        buffers.extend(self.expected.iter().map(|values| Buffer::output(values.len() * dtype.size())));
        buffers.extend(self.launch.constants.iter().map(|constant| Buffer::input(constant.bytes().to_vec())));
        Run {
            function: format!("{}_{}", self.launch.function, dtype.suffix()),
            grid: [self.launch.threadgroups as u32, 1, 1],
            threadgroup: [self.launch.threads as u32, 1, 1],
            buffers,
        }
    }
}

/// The first element that is not what it should be.
pub(super) fn wrong(case: &Case, dtype: Dtype, outputs: &[Vec<u8>]) -> Option<String> {
    let tolerance = match dtype {
        Dtype::F32 => 2e-6,
        // The last of ten bits.
        Dtype::F16 => 1e-3,
    };
    for (number, (bytes, expected)) in outputs.iter().zip(&case.expected).enumerate() {
        for (at, (actual, &expected)) in dtype.values(bytes).into_iter().zip(expected).enumerate() {
            let expected = dtype.round(expected);
            let same = actual == expected || actual.is_nan() && expected.is_nan();
            let close = (actual - expected).abs() <= tolerance * expected.abs().max(1.0);
            if !same && !close {
                return Some(format!("element {at} of output {number} is {actual} instead of {expected}"));
            }
        }
    }
    None
}

/// Lengths of rows: one thread, parts of a simdgroup, around its size and that of a threadgroup, real models', the longest.
const WIDTHS: [usize; 14] = [1, 2, 31, 32, 33, 64, 255, 256, 257, 300, 896, 1025, 4096, 16384];
const ROWS: usize = 3;
const EPSILON: f64 = 1e-6;

/// Everything an op is run on.
///
/// # Panics
/// If the op has no cases.
pub(super) fn cases(op: &str, dtype: Dtype) -> Vec<Case> {
    match op {
        "rms_norm" => rows(dtype, 1, 1, |i, rows, width| Case {
            what: String::new(),
            launch: shader::rms_norm(rows, width, EPSILON),
            expected: vec![reference::rms_norm(&i[0], &i[1], EPSILON)],
            inputs: i,
        }),
        "add_rms_norm" => rows(dtype, 2, 1, |i, rows, width| {
            let sum = reference::add(&i[0], &i[1], dtype);
            let normed = reference::rms_norm(&sum, &i[2], EPSILON);
            let launch = shader::add_rms_norm(rows, width, EPSILON);
            Case { what: String::new(), launch, expected: vec![sum, normed], inputs: i }
        }),
        "layer_norm" => rows(dtype, 1, 2, |i, rows, width| Case {
            what: String::new(),
            launch: shader::layer_norm(rows, width, EPSILON),
            expected: vec![reference::layer_norm(&i[0], &i[1], &i[2], EPSILON)],
            inputs: i,
        }),
        "add_layer_norm" => rows(dtype, 2, 2, |i, rows, width| {
            let sum = reference::add(&i[0], &i[1], dtype);
            let launch = shader::add_layer_norm(rows, width, EPSILON);
            let expected = vec![reference::layer_norm(&sum, &i[2], &i[3], EPSILON)];
            Case { what: String::new(), launch, expected, inputs: i }
        }),
        "softmax" => {
            let mut cases = rows(dtype, 1, 0, |i, rows, width| Case {
                what: String::new(),
                launch: shader::softmax(rows, width, 3.5, None),
                expected: vec![reference::softmax(&i[0], width, 3.5, None)],
                inputs: i,
            });
            for mask_rows in [1, 3] {
                cases.extend(masked(dtype, mask_rows));
            }
            cases.push(masked_out(dtype));
            cases
        }
        "rope" => rope(dtype),
        "norm_rope" => norm_rope(dtype),
        "swiglu" => {
            let mut cases = elements(dtype, 2, |i| Case {
                what: String::new(),
                launch: shader::swiglu(i[0].len()),
                expected: vec![reference::swiglu(&i[0], &i[1])],
                inputs: i,
            });
            let gates: Vec<f64> = [80.0, 88.0, 89.0, 1e3, 6e4].iter().flat_map(|&g| [g, -g]).collect();
            let ups = vec![0.5; gates.len()];
            cases.push(Case {
                what: "large gates".to_owned(),
                launch: shader::swiglu(gates.len()),
                expected: vec![reference::swiglu(&gates, &ups)],
                inputs: vec![gates, ups],
            });
            cases
        }
        "gelu" => gelu(dtype),
        _ => panic!("no cases for {op}"),
    }
}

fn random(seed: u64, count: usize, dtype: Dtype, scale: f64) -> Vec<f64> {
    Array::random(seed, &[count]).values.into_iter().map(|v| dtype.round(v * scale)).collect()
}

/// Ops of rows: so many inputs of rows, then so many of one row. Plain rows, NaN in the middle row, large values, zeros, and no row at all.
fn rows(dtype: Dtype, wide: usize, narrow: usize, case: impl Fn(Vec<Vec<f64>>, usize, usize) -> Case) -> Vec<Case> {
    let mut cases = Vec::new();
    let inputs = |rows: usize, width: usize| -> Vec<Vec<f64>> {
        let wides = (0..wide).map(|n| random(n as u64 + 1, rows * width, dtype, 1.0));
        wides.chain((0..narrow).map(|n| random(n as u64 + 10, width, dtype, 1.0))).collect()
    };
    for width in WIDTHS {
        cases.push(Case { what: format!("width {width}"), ..case(inputs(ROWS, width), ROWS, width) });
    }
    for (width, column) in [(1, 0), (33, 32), (300, 299), (1025, 517)] {
        let mut spoiled = inputs(ROWS, width);
        spoiled[0][width + column] = f64::NAN;
        cases.push(Case { what: format!("NaN at {column} of {width}"), ..case(spoiled, ROWS, width) });
    }
    for scale in [1e4, 1e-3, 0.0] {
        let mut scaled = inputs(ROWS, 300);
        scaled[..wide].iter_mut().flatten().for_each(|v| *v = dtype.round(*v * scale));
        cases.push(Case { what: format!("values times {scale}"), ..case(scaled, ROWS, 300) });
    }
    cases.push(Case { what: "no rows".to_owned(), ..case(inputs(0, 7), 0, 7) });
    cases
}

fn masked(dtype: Dtype, mask_rows: usize) -> Vec<Case> {
    let widths = WIDTHS.iter().map(|&width| {
        let (x, mask) = (random(1, 6 * width, dtype, 4.0), random(2, mask_rows * width, dtype, 4.0));
        let mask: Vec<f64> = mask.iter().map(|&v| if v < -3.0 && width > 31 { f64::NEG_INFINITY } else { v }).collect();
        Case {
            what: format!("width {width}, {mask_rows} rows of mask"),
            launch: shader::softmax(6, width, 0.125, Some(mask_rows)),
            expected: vec![reference::softmax(&x, width, 0.125, Some(&mask))],
            inputs: vec![x, mask],
        }
    });
    widths.collect()
}

/// A row of which nothing is left is NaN, and no other.
fn masked_out(dtype: Dtype) -> Case {
    let x = random(1, 3 * 40, dtype, 4.0);
    let mut mask = vec![0.0; 3 * 40];
    mask[40..80].fill(f64::NEG_INFINITY);
    Case {
        what: "everything masked".to_owned(),
        launch: shader::softmax(3, 40, 1.0, Some(3)),
        expected: vec![reference::softmax(&x, 40, 1.0, Some(&mask))],
        inputs: vec![x, mask],
    }
}

/// The cosines and sines of random angles, `[tokens, dim / 2]`.
pub(crate) fn tables(tokens: usize, dim: usize, dtype: Dtype) -> [Vec<f64>; 2] {
    let angles = random(2, tokens * dim / 2, Dtype::F32, 3.0);
    [f64::cos, f64::sin].map(|of| angles.iter().map(|&angle| dtype.round(of(angle))).collect())
}

fn rope(dtype: Dtype) -> Vec<Case> {
    let shapes = [[1, 1, 2], [1, 14, 64], [5, 3, 6], [7, 1, 128], [60, 2, 34], [0, 2, 4]];
    let shape = shapes.into_iter().map(|[tokens, heads, dim]| {
        let [cos, sin] = tables(tokens, dim, dtype);
        let mut x = random(1, tokens * heads * dim, dtype, 2.0);
        if tokens == 5 {
            x[7] = f64::NAN;
        }
        Case {
            what: format!("{tokens} tokens, {heads} heads of {dim}"),
            launch: shader::rope(tokens, heads, dim),
            expected: vec![reference::rope(&x, &cos, &sin, heads, dim)],
            inputs: vec![x, cos, sin],
        }
    });
    shape.collect()
}

fn norm_rope(dtype: Dtype) -> Vec<Case> {
    let shapes = [[1, 1, 2], [1, 14, 64], [5, 3, 6], [7, 1, 128], [60, 2, 34], [2, 2, 1026], [0, 2, 4]];
    let shape = shapes.into_iter().map(|[tokens, heads, dim]| {
        let [cos, sin] = tables(tokens, dim, dtype);
        let (mut x, weight) = (random(1, tokens * heads * dim, dtype, 2.0), random(4, dim, dtype, 1.0));
        if tokens == 5 {
            x[7] = f64::NAN;
            x[2 * dim..3 * dim].fill(0.0);
        }
        let normed = reference::rms_norm(&x, &weight, EPSILON);
        Case {
            what: format!("{tokens} tokens, {heads} heads of {dim}"),
            launch: shader::norm_rope(tokens, heads, dim, EPSILON),
            expected: vec![reference::rope(&normed, &cos, &sin, heads, dim)],
            inputs: vec![x, weight, cos, sin],
        }
    });
    shape.collect()
}

/// Ops of elements: around the size of a threadgroup, with a NaN in one of them.
fn elements(dtype: Dtype, inputs: u64, case: impl Fn(Vec<Vec<f64>>) -> Case) -> Vec<Case> {
    let lengths = [0, 1, 31, 255, 256, 257, 896, 4097].into_iter().map(|length| {
        let mut inputs: Vec<Vec<f64>> = (0..inputs).map(|n| random(n + 1, length, dtype, 6.0)).collect();
        if length == 257 {
            inputs[0][100] = f64::NAN;
        }
        Case { what: format!("{length} elements"), ..case(inputs) }
    });
    lengths.collect()
}

fn gelu(dtype: Dtype) -> Vec<Case> {
    let mut cases = elements(dtype, 1, |i| Case {
        what: String::new(),
        launch: shader::gelu(i[0].len(), None),
        expected: vec![reference::gelu(&i[0], None)],
        inputs: i,
    });
    let sizes = [0.0, 1e-3, 5.6, 5.65, 5.66, 6.0, 8.0, 100.0, 6e4];
    let x: Vec<f64> = sizes.iter().flat_map(|&x| [x, -x]).map(|x| dtype.round(x)).collect();
    cases.push(Case {
        what: "saturated".to_owned(),
        launch: shader::gelu(x.len(), None),
        expected: vec![reference::gelu(&x, None)],
        inputs: vec![x],
    });
    for width in [1, 31, 300, 1536] {
        let (mut x, bias) = (random(1, 3 * width, dtype, 5.0), random(2, width, dtype, 1.0));
        x[width] = f64::NAN;
        cases.push(Case {
            what: format!("bias of {width}"),
            launch: shader::gelu(x.len(), Some(width)),
            expected: vec![reference::gelu(&x, Some(&bias))],
            inputs: vec![x, bias],
        });
    }
    cases
}
