//! The right answers of the ops, in f64, straight from their definitions: a few values of each.

use super::workload::{Kind, RowOp, Workload, qwen};

/// Numbers that look random, all different from their neighbours, in `[-1, 1]`: every peer makes the same ones.
pub fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + seed) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// The seed of an input: there are four of each.
pub fn seed(input: usize) -> usize {
    1 + 17 * (input % INPUTS)
}

/// Different inputs that are used in turn.
pub const INPUTS: usize = 4;

/// Token ids of an input.
pub fn ids(count: usize, vocabulary: usize, input: usize) -> Vec<u32> {
    (0..count).map(|at| ((at * 7919 + 31 * (input % INPUTS)) % vocabulary) as u32).collect()
}

/// The factor of an MLP's weights, so that values stay near one.
pub const MLP_SCALE: f32 = 0.05;
/// The scale of the adapter in a linear.
pub const LORA_SCALE: f64 = 2.0;
/// What norms add to the variance.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;
/// What RMS norms add to the mean of squares.
pub const RMS_NORM_EPSILON: f64 = 1e-6;
/// The base of rotary angles.
pub const THETA: f64 = 1e6;

/// A matrix of [`values`], read by row.
struct Matrix {
    width: usize,
    seed: usize,
    scale: f32,
}

impl Matrix {
    fn new(width: usize, seed: usize) -> Self {
        Self { width, seed, scale: 1.0 }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        let value = ((row * self.width + column) * 7919 + self.seed) % 2003;
        f64::from((value as f32 / 1001.0 - 1.0) * self.scale)
    }

    fn row(&self, row: usize) -> Vec<f64> {
        (0..self.width).map(|column| self.at(row, column)).collect()
    }

    /// The product of `x` with a row.
    fn dot(&self, row: usize, x: &[f64]) -> f64 {
        x.iter().enumerate().map(|(column, x)| x * self.at(row, column)).sum()
    }
}

/// The first four values of the first row and of the last one, or `None` for what is not an op.
pub fn answer(workload: &Workload, input: usize) -> Option<Vec<f64>> {
    let x_seed = seed(input);
    let (rows, row): (usize, Box<dyn Fn(usize) -> Vec<f64>>) = match workload.kind {
        Kind::Rows { op, shape: [rows, width], .. } => {
            let (x, y) = (Matrix::new(width, x_seed), Matrix::new(width, x_seed + 5));
            let (weight, bias) = (Matrix::new(width, 2).row(0), Matrix::new(width, 3).row(0));
            (rows, Box::new(move |row| of_row(op, &x.row(row), &y.row(row), &weight, &bias)))
        }
        Kind::Matmul { sizes: [rows, inputs, _] } => {
            let (x, weight) = (Matrix::new(inputs, x_seed), Matrix::new(inputs, 2));
            (rows, Box::new(move |row| (0..4).map(|out| weight.dot(out, &x.row(row))).collect()))
        }
        Kind::LoraForward { sizes: [rows, features, rank] } => {
            let (x, weight) = (Matrix::new(features, x_seed), Matrix::new(features, 2));
            let (a, b) = (Matrix::new(features, 3), Matrix::new(rank, 4));
            let row = move |row| {
                let x = x.row(row);
                let low: Vec<f64> = (0..rank).map(|r| a.dot(r, &x)).collect();
                (0..4).map(|out| weight.dot(out, &x) + LORA_SCALE * b.dot(out, &low)).collect()
            };
            (rows, Box::new(row))
        }
        Kind::Attention { .. } | Kind::DecodeAttention { .. } => {
            let [heads, kv_heads, dim] = qwen::HEADS;
            let (tokens, before) = match workload.kind {
                Kind::DecodeAttention { keys } => (1, keys - 1),
                Kind::Attention { tokens } => (tokens, 0),
                _ => return None,
            };
            let q = Matrix::new(dim, x_seed);
            let (k, v) = (Matrix::new(kv_heads * dim, 2), Matrix::new(kv_heads * dim, 3));
            // A row of `q` is a head; the last is the last token's last.
            let row = move |row: usize| {
                let (token, head) = (row / heads, row % heads);
                let (query, start) = (q.row(row), head / (heads / kv_heads) * dim);
                let score = |key: usize| {
                    let dot: f64 = query.iter().enumerate().map(|(at, q)| q * k.at(key, start + at)).sum();
                    (dot / (dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..=before + token).map(score).collect();
                let sum: f64 = scores.iter().sum();
                let value =
                    |at: usize| scores.iter().enumerate().map(|(key, s)| s * v.at(key, start + at)).sum::<f64>();
                (0..4).map(|at| value(at) / sum).collect()
            };
            (tokens * heads, Box::new(row))
        }
        Kind::Embedding { tokens } => {
            let (table, ids) = (Matrix::new(qwen::HIDDEN, 2), ids(tokens, qwen::VOCABULARY, input));
            (tokens, Box::new(move |row| table.row(ids[row] as usize)))
        }
        Kind::Rope { tokens } => {
            let [heads, _, dim] = qwen::HEADS;
            let x = Matrix::new(dim, x_seed);
            let row = move |row: usize| {
                let x = x.row(row);
                let angle = |at: usize| (row / heads) as f64 * THETA.powf(-2.0 * at as f64 / dim as f64);
                (0..4).map(|at| x[at] * angle(at).cos() - x[dim / 2 + at] * angle(at).sin()).collect()
            };
            (tokens * heads, Box::new(row))
        }
        Kind::Mlp { tokens } => {
            let (hidden, wide) = (qwen::HIDDEN, qwen::INTERMEDIATE);
            let weight = |width, seed| Matrix { width, seed, scale: MLP_SCALE };
            let (x, gate, up, down) =
                (Matrix::new(hidden, x_seed), weight(hidden, 2), weight(hidden, 3), weight(wide, 4));
            let row = move |row| {
                let x = x.row(row);
                let inner = |out| {
                    let gate = gate.dot(out, &x);
                    gate / (1.0 + (-gate).exp()) * up.dot(out, &x)
                };
                let inner: Vec<f64> = (0..wide).map(inner).collect();
                (0..4).map(|out| down.dot(out, &inner)).collect()
            };
            (tokens, Box::new(row))
        }
        Kind::HeadLoss { tokens, .. } => {
            let (x, ids) = (Matrix::new(qwen::HIDDEN, x_seed), ids(tokens, qwen::VOCABULARY, input));
            let head = Matrix { width: qwen::HIDDEN, seed: 2, scale: MLP_SCALE };
            let row = move |row: usize| {
                let x = x.row(row);
                let shares: Vec<f64> = (0..qwen::VOCABULARY).map(|id| head.dot(id, &x).exp()).collect();
                let sum: f64 = shares.iter().sum();
                let mean = |at| shares.iter().enumerate().map(|(id, share)| share * head.at(id, at)).sum::<f64>() / sum;
                (0..4).map(|at| mean(at) - head.at(ids[row] as usize, at)).collect()
            };
            (tokens, Box::new(row))
        }
        _ => return None,
    };
    Some([0, rows - 1].into_iter().flat_map(|at| row(at).into_iter().take(4)).collect())
}

fn of_row(op: RowOp, x: &[f64], y: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let square_mean = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let rms_norm = |x: &[f64]| -> Vec<f64> {
        let inverse = (square_mean(x) + RMS_NORM_EPSILON).sqrt().recip();
        x.iter().zip(weight).map(|(x, w)| x * inverse * w).collect()
    };
    let layer_norm = |x: &[f64]| -> Vec<f64> {
        let centre = mean(x);
        let centred: Vec<f64> = x.iter().map(|x| x - centre).collect();
        let inverse = (square_mean(&centred) + LAYER_NORM_EPSILON).sqrt().recip();
        centred.iter().zip(weight.iter().zip(bias)).map(|(x, (w, b))| x * inverse * w + b).collect()
    };
    let sum: Vec<f64> = x.iter().zip(y).map(|(x, y)| x + y).collect();
    match op {
        RowOp::Copy => x.to_vec(),
        RowOp::Softmax => {
            let total: f64 = x.iter().map(|x| x.exp()).sum();
            x.iter().map(|x| x.exp() / total).collect()
        }
        RowOp::LayerNorm => layer_norm(x),
        RowOp::RmsNorm => rms_norm(x),
        RowOp::AddRmsNorm => rms_norm(&sum),
        RowOp::AddLayerNorm => layer_norm(&sum),
        RowOp::Swiglu => x.iter().zip(y).map(|(x, y)| x / (1.0 + (-x).exp()) * y).collect(),
        RowOp::Gelu => x.iter().zip(bias).map(|(x, b)| normal(x + b) * (x + b)).collect(),
    }
}

/// The normal distribution function by its series around zero (Abramowitz & Stegun 26.2.11), exact enough within three deviations.
fn normal(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= x * x / (2 * n + 1) as f64;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}
