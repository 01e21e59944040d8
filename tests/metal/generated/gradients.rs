//! The gradients of the ops in f64, as plainly as they can be written; and the proof that they are those of the ops.

use crate::metal::reference;

/// Row by row: the op's own values, the gradient that reached it, and the weight of each element.
fn each_row(x: &[f64], grad: &[f64], length: usize, row: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(length).zip(grad.chunks_exact(length)).flat_map(|(x, grad)| row(x, grad)).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

pub(super) fn rms_norm(x: &[f64], weight: &[f64], grad: &[f64], epsilon: f64) -> Vec<f64> {
    each_row(x, grad, weight.len(), |x, grad| {
        let root = (mean(x.iter().map(|x| x * x)) + epsilon).sqrt();
        let scaled: Vec<f64> = grad.iter().zip(weight).map(|(grad, weight)| grad * weight).collect();
        let along = mean(scaled.iter().zip(x).map(|(scaled, x)| scaled * x));
        scaled.iter().zip(x).map(|(scaled, x)| scaled / root - x * along / root.powi(3)).collect()
    })
}

pub(super) fn layer_norm(x: &[f64], weight: &[f64], grad: &[f64], epsilon: f64) -> Vec<f64> {
    each_row(x, grad, weight.len(), |x, grad| {
        let centre = mean(x.iter().copied());
        let deviation = (mean(x.iter().map(|x| (x - centre).powi(2))) + epsilon).sqrt();
        let normed: Vec<f64> = x.iter().map(|x| (x - centre) / deviation).collect();
        let scaled: Vec<f64> = grad.iter().zip(weight).map(|(grad, weight)| grad * weight).collect();
        let level = mean(scaled.iter().copied());
        let along = mean(scaled.iter().zip(&normed).map(|(scaled, normed)| scaled * normed));
        scaled.iter().zip(&normed).map(|(scaled, normed)| (scaled - level - normed * along) / deviation).collect()
    })
}

/// From the op's output.
pub(super) fn softmax(y: &[f64], grad: &[f64], length: usize, scale: f64) -> Vec<f64> {
    each_row(y, grad, length, |y, grad| {
        let dot: f64 = y.iter().zip(grad).map(|(y, grad)| y * grad).sum();
        y.iter().zip(grad).map(|(y, grad)| scale * y * (grad - dot)).collect()
    })
}

/// With respect to the gate and to what it lets through.
pub(super) fn swiglu(gate: &[f64], up: &[f64], grad: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let of = |((gate, up), grad): ((&f64, &f64), &f64)| {
        let open = 1.0 / (1.0 + (-gate).exp());
        (grad * up * open * (1.0 + gate * (1.0 - open)), grad * gate * open)
    };
    gate.iter().zip(up).zip(grad).map(of).unzip()
}

pub(super) fn gelu(x: &[f64], bias: Option<&[f64]>, grad: &[f64]) -> Vec<f64> {
    let biased: Vec<f64> =
        x.iter().enumerate().map(|(i, x)| x + bias.map_or(0.0, |bias| bias[i % bias.len()])).collect();
    let of = |(&x, grad): (&f64, &f64)| {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        // `x · Φ(x)` of one is the distribution.
        let distribution = if x == 0.0 { 0.5 } else { reference::gelu(&[x], None)[0] / x };
        grad * (distribution + x * density)
    };
    biased.iter().zip(grad).map(of).collect()
}

#[test]
fn the_gradients_are_those_of_the_ops() {
    let random = |seed, count| crate::ops::oracle::Array::random(seed, &[count]).values;
    let (x, weight, bias, grad) = (random(1, 14), random(2, 7), random(3, 7), random(4, 14));
    let check = |what: &str, x: &[f64], actual: &[f64], op: &dyn Fn(&[f64]) -> Vec<f64>| {
        let loss = |x: &[f64]| op(x).iter().zip(&grad).map(|(y, grad)| y * grad).sum::<f64>();
        for (at, actual) in actual.iter().enumerate() {
            let [above, below] = [1e-6, -1e-6].map(|step| {
                let mut moved = x.to_vec();
                moved[at] += step;
                loss(&moved)
            });
            let expected = (above - below) / 2e-6;
            assert!((actual - expected).abs() < 1e-7, "{what}: {actual} instead of {expected}");
        }
    };
    check("rms_norm", &x, &rms_norm(&x, &weight, &grad, 0.1), &|x| reference::rms_norm(x, &weight, 0.1));
    check("layer_norm", &x, &layer_norm(&x, &weight, &grad, 0.1), &|x| reference::layer_norm(x, &weight, &bias, 0.1));
    let y = reference::softmax(&x, 7, 1.5, None);
    check("softmax", &x, &softmax(&y, &grad, 7, 1.5), &|x| reference::softmax(x, 7, 1.5, None));
    let up = random(5, 14);
    let (d_gate, d_up) = swiglu(&x, &up, &grad);
    check("swiglu's gate", &x, &d_gate, &|x| reference::swiglu(x, &up));
    check("swiglu's up", &up, &d_up, &|up| reference::swiglu(&x, up));
    check("gelu", &x, &gelu(&x, Some(&bias), &grad), &|x| reference::gelu(x, Some(&bias)));
}
