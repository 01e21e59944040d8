//! Reductions and the exponential, written so that the compiler vectorises them for whatever instruction set it is told to use.
//! Sums run in sixteen lanes: one AVX-512 register, two of AVX, four of NEON, and less rounding than one running sum.

const LANES: usize = 16;

#[inline(always)]
fn reduce(length: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = length / LANES * LANES;
    let mut at = 0;
    while at < whole {
        for lane in 0..LANES {
            lanes[lane] += term(at + lane);
        }
        at += LANES;
    }
    let mut rest = 0.0;
    while at < length {
        rest += term(at);
        at += 1;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0] + rest
}

/// Σ x
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    reduce(x.len(), |i| x[i])
}

/// Σ x·y
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32]) -> f32 {
    let y = &y[..x.len()];
    reduce(x.len(), |i| x[i] * y[i])
}

/// Σ x·y·z
#[inline(always)]
pub(crate) fn sum3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let (y, z) = (&y[..x.len()], &z[..x.len()]);
    reduce(x.len(), |i| x[i] * y[i] * z[i])
}

/// Σ (x − centre)²
#[inline(always)]
pub(crate) fn sum_squares_about(x: &[f32], centre: f32) -> f32 {
    reduce(x.len(), |i| (x[i] - centre) * (x[i] - centre))
}

/// The largest element; NaN if there is one, so that it is not lost.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    for &v in chunks.remainder() {
        lanes[0] = larger(lanes[0], v);
    }
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    // A comparison with NaN is false: `a` survives if it is NaN, `b` is taken if it is.
    if a >= b || a.is_nan() { a } else { b }
}

/// eˣ, within 2 units in the last place; 0 below −87.3, the largest finite power above 88.7, NaN for NaN.
///
/// Source: the range reduction and the polynomial of Cephes `expf` (Moshier 1992).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.376_26;
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer without an instruction that SSE2 lacks.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let power = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - power * 0.693_359_4 - power * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_3e-1;
    let p = p * r * r + r + 1.0;
    // `power` is an integer in [-126, 127], or NaN, which `as` maps to 0 and `p` carries on.
    let scale = f32::from_bits(((power as i32 + 127) << 23) as u32);
    let y = p * scale;
    if x < LOWEST { 0.0 } else { y }
}

/// Softmax of one row, in place. A row of −∞ alone becomes NaN, as in the reference.
#[inline(always)]
pub(crate) fn softmax_in_place(row: &mut [f32]) {
    let shift = max(row);
    for v in row.iter_mut() {
        *v = exp(*v - shift);
    }
    let inverse = 1.0 / sum(row);
    for v in row.iter_mut() {
        *v *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maximum_cover_every_length() {
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(sum2(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        let mut with_nan = vec![1.0; 40];
        with_nan[17] = f32::NAN;
        assert!(max(&with_nan).is_nan());
    }
}
