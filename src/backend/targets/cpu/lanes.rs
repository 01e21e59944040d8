//! Reductions and the exponential, written so that the compiler vectorises them for whatever instruction set it is told to use.
//! Sums run in lanes, in the same order on every processor, which also rounds less than one running sum.

use pulp::{Arch, Simd, WithSimd};

/// So many that the compiler leaves the loop over them a loop, which it vectorises well. A handful it would unroll first, and then
/// often adds one element at a time (seen in the code LLVM 22 makes for 16 and 32).
const LANES: usize = 128;

/// Runs `work` compiled for this processor's widest instruction set.
///
/// Only what is inlined into it is: the closure must say `#[inline(always)]`, and so must every function it calls. (A closure
/// handed to `Arch::dispatch` itself goes through the adapter from `Fn` to `FnOnce`, which is never inlined.)
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnMut() -> R) -> R {
    struct Work<F>(F);

    impl<R, F: FnMut() -> R> WithSimd for Work<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Work(work))
}

/// Σ term(x, y, z). Fewer operands: the same one again, which costs nothing.
#[inline(always)]
fn reduce(x: &[f32], y: &[f32], z: &[f32], term: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    // Whole arrays of lanes: one check of the length for each, where an index would need one for each element.
    let ((xs, x), (ys, y), (zs, z)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane], z[lane]);
        }
    }
    for (((lane, &x), &y), &z) in lanes.iter_mut().zip(x).zip(y).zip(z) {
        *lane += term(x, y, z);
    }
    fold(lanes, |a, b| a + b)
}

/// Σ x
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    reduce(
        x,
        x,
        x,
        #[inline(always)]
        |x, _, _| x,
    )
}

/// Σ x·y
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32]) -> f32 {
    reduce(
        x,
        y,
        y,
        #[inline(always)]
        |x, y, _| x * y,
    )
}

/// Σ x·y·z
#[inline(always)]
pub(crate) fn sum3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    reduce(
        x,
        y,
        z,
        #[inline(always)]
        |x, y, z| x * y * z,
    )
}

/// Σ (x − centre)·y·z
#[inline(always)]
pub(crate) fn sum3_about(x: &[f32], centre: f32, y: &[f32], z: &[f32]) -> f32 {
    reduce(
        x,
        y,
        z,
        #[inline(always)]
        |x, y, z| (x - centre) * y * z,
    )
}

/// Σ (x − centre)²
#[inline(always)]
pub(crate) fn sum_squares_about(x: &[f32], centre: f32) -> f32 {
    reduce(
        x,
        x,
        x,
        #[inline(always)]
        |x, _, _| (x - centre) * (x - centre),
    )
}

/// eˣ, within 2 units in the last place; 0 below −87.33, infinite above 88.37 (where f32 is by 88.73), NaN for NaN.
///
/// Source: the range reduction and the polynomial of Cephes `expf` (Moshier 1992).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.376_26;
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer without an instruction that SSE2 lacks.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = x - power * 0.693_359_4 - power * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_3e-1;
    let p = p * r * r + r + 1.0;
    // The low bits of `shifted` are the integer `power`: moved to the exponent they make 2^power without a conversion, which
    // would have to look for NaN. Outside the range they are rubbish and not used; for NaN `p` is NaN whatever they are.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let y = p * scale;
    let y = if x < LOWEST { 0.0 } else { y };
    if x > HIGHEST { f32::INFINITY } else { y }
}

/// erf x, within 4·10⁻⁷ absolutely; NaN for NaN. Beyond ±4, where an f32 of it is ±1, it is what it is at ±4.
///
/// Source: the rational approximation that Eigen and XLA use, odd over even polynomial.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let p = -2.726_142_3e-10;
    let p = p * square + 2.770_681_4e-8;
    let p = p * square - 2.101_024e-6;
    let p = p * square - 5.692_506_5e-5;
    let p = p * square - 7.349_906e-4;
    let p = p * square - 2.954_6e-3;
    let p = p * square - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * square - 2.133_740_6e-4;
    let q = q * square - 1.682_827e-3;
    let q = q * square - 7.373_329e-3;
    let q = q * square - 1.426_473_9e-2;
    x * p / q
}

/// Softmax of one row, in place. A row of −∞ alone becomes NaN, as in the reference; so does one with NaN in it, through the sum.
#[inline(always)]
pub(crate) fn softmax_in_place(row: &mut [f32]) {
    let shift = max_but_nan(row);
    let inverse = 1.0 / exponentials(row, shift);
    for v in row.iter_mut() {
        *v *= inverse;
    }
}

/// Each element becomes the exponential of what it is above `shift`; their sum. One pass, where a row may be longer than the nearest cache.
#[inline(always)]
fn exponentials(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let y = exp(chunk[lane] - shift);
            chunk[lane] = y;
            lanes[lane] += y;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *v = exp(*v - shift);
        *lane += *v;
    }
    fold(lanes, |a, b| a + b)
}

/// The largest element that is a number: an instruction for each, where one that keeps NaN is three.
#[inline(always)]
fn max_but_nan(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, v);
    }
    fold(lanes, larger)
}

/// The lanes as one, always in the same order.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low = join(*low, *high));
        width /= 2;
    }
    lanes[0]
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
        for x in [-87.34, -88.0, -103.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
        for x in [88.73, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_its_bound() {
        // Abramowitz & Stegun, table 7.1.
        let known = [(0.1, 0.112_462_916), (0.5, 0.520_499_878), (1.0, 0.842_700_793), (2.0, 0.995_322_265)];
        for (x, exact) in known {
            assert!((f64::from(erf(x)) - exact).abs() < 4e-7, "{x}");
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!(erf(0.0), 0.0);
        assert!((erf(1e30) - 1.0).abs() < 4e-7);
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maximum_cover_every_length() {
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(sum2(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(max_but_nan(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        let mut with_nan = vec![1.0; 40];
        with_nan[17] = f32::NAN;
        assert_eq!(max_but_nan(&with_nan), 1.0);
        softmax_in_place(&mut with_nan);
        assert!(with_nan.iter().all(|v| v.is_nan()), "{with_nan:?}");
    }
}
