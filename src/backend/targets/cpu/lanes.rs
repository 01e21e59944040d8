//! Reductions and the exponential, written so that the compiler vectorises them for whatever instruction set it is told to use.
//! Sums run in lanes, in the same order on every processor, which also rounds less than one running sum.

use pulp::{Simd, WithSimd};

use super::{Ahead, InstructionSet};

/// So many that the compiler leaves the loop over them a loop, which it vectorises well. A handful it would unroll first, and then
/// often adds one element at a time (seen in the code LLVM 22 makes for 16 and 32).
const LANES: usize = 128;

/// Runs `work` compiled for the widest instruction set there is.
///
/// Only what is inlined into it is: the closure must say `#[inline(always)]`, and so must every function it calls. (A closure
/// handed to `Arch::dispatch` itself goes through the adapter from `Fn` to `FnOnce`, which is never inlined.)
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnMut(Math) -> R) -> R {
    struct Work<F>(F);

    impl<R, F: FnMut(Math) -> R> WithSimd for Work<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            // Every set of pulp's that has vectors can multiply and add in one instruction.
            (self.0)(Math { fused: !S::IS_SCALAR })
        }
    }
    InstructionSet::detect().arch().dispatch(Work(work))
}

/// Functions for the instruction set that a closure is being compiled for, which only the code that picked it knows.
#[derive(Clone, Copy)]
pub(crate) struct Math {
    fused: bool,
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

/// The mean of `x`, and the mean of the squares of the distances from it, in one pass: the sums are of what lies beyond the mean of the first
/// [`LANES`], so that few digits are lost where the mean is large.
#[inline(always)]
pub(crate) fn mean_and_variance(x: &[f32]) -> (f32, f32) {
    let first = &x[..x.len().min(LANES)];
    let (centre, count) = (sum(first) / first.len() as f32, x.len() as f32);
    let (mut sums, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let beyond = chunk[lane] - centre;
            sums[lane] += beyond;
            squares[lane] += beyond * beyond;
        }
    }
    for ((sum, square), &x) in sums.iter_mut().zip(&mut squares).zip(rest) {
        let beyond = x - centre;
        *sum += beyond;
        *square += beyond * beyond;
    }
    let beyond = fold(sums, |a, b| a + b) / count;
    let variance = fold(squares, |a, b| a + b) / count - beyond * beyond;
    (centre + beyond, if variance < 0.0 { 0.0 } else { variance })
}

impl Math {
    /// `a · b + c`; where that is one instruction, rounded once.
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        if self.fused { a.mul_add(b, c) } else { a * b + c }
    }

    /// The polynomial of these coefficients, the highest power's first.
    #[inline(always)]
    fn polynomial<const N: usize>(self, x: f32, coefficients: [f32; N]) -> f32 {
        let mut value = coefficients[0];
        for &coefficient in &coefficients[1..] {
            value = self.mul_add(value, x, coefficient);
        }
        value
    }

    /// eˣ, within 2 units in the last place; 0 below −87.33, infinite above 88.37 (where f32 is by 88.73), NaN for NaN.
    ///
    /// Source: the range reduction and the polynomial of Cephes `expf` (Moshier 1992).
    #[inline(always)]
    pub(crate) fn exp(self, x: f32) -> f32 {
        const HIGHEST: f32 = 88.376_26;
        let y = self.exp_below(x);
        if x > HIGHEST { f32::INFINITY } else { y }
    }

    /// As [`exp`](Self::exp), for `x` of at most 88.
    #[inline(always)]
    fn exp_below(self, x: f32) -> f32 {
        const LOWEST: f32 = -87.336_54;
        // Adding and subtracting 1.5·2²³ rounds to the nearest integer without an instruction that SSE2 lacks.
        const ROUND: f32 = 12_582_912.0;
        let shifted = self.mul_add(x, std::f32::consts::LOG2_E, ROUND);
        let power = shifted - ROUND;
        let r = self.mul_add(power, 2.121_944_4e-4, self.mul_add(power, -0.693_359_4, x));
        let p = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1];
        let p = self.mul_add(self.polynomial(r, p), r * r, r);
        // The low bits of `shifted` are the integer `power`: moved to the exponent they make 2^power without a conversion, which
        // would have to look for NaN. Outside the range they are rubbish and not used; for NaN `p` is NaN whatever they are.
        let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
        let y = self.mul_add(p, scale, scale);
        if x < LOWEST { 0.0 } else { y }
    }

    /// `Φ(x) = (1 + erf(x / √2)) / 2`, within 4·10⁻⁷ absolutely, and 0 from −5.65 down, where an f32 of it would be a rounding that a large
    /// `x` multiplies; NaN for NaN.
    ///
    /// Source: the rational approximation of erf that Eigen and XLA use, odd over even polynomial, which is ±1 from ±4 on.
    #[inline(always)]
    pub(crate) fn normal_distribution(self, x: f32) -> f32 {
        const SATURATED: f32 = 5.65;
        const ODD: [f32; 7] = in_halves_of_squares([
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_5e-5,
            -7.349_906e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ]);
        const EVEN: [f32; 5] =
            in_halves_of_squares([-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2]);
        let inside = x.clamp(-SATURATED, SATURATED);
        let square = inside * inside;
        let odd = inside * (0.5 * std::f32::consts::FRAC_1_SQRT_2) * self.polynomial(square, ODD);
        let y = 0.5 + odd / self.polynomial(square, EVEN);
        if x < -SATURATED { 0.0 } else { y }
    }

    /// Softmax of one row times `scale`, in place. A row of −∞ alone becomes NaN, as in the reference; so does one with NaN in
    /// it, through the sum.
    #[inline(always)]
    pub(crate) fn softmax_in_place(self, row: &mut [f32], mut scale: f32) {
        if scale <= 0.0 {
            // The largest product is not that of the largest element.
            row.iter_mut().for_each(|v| *v *= scale);
            scale = 1.0;
        }
        let sum = self.exponentials_in_place(row, scale, -scale * max_but_nan(row));
        divide(row, sum);
    }

    /// Each element becomes the exponential of itself times `scale` plus `shift`, which must be at most 88; their sum.
    #[inline(always)]
    pub(crate) fn exponentials_in_place(self, row: &mut [f32], scale: f32, shift: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let y = self.exp_below(self.mul_add(chunk[lane], scale, shift));
                chunk[lane] = y;
                lanes[lane] += y;
            }
        }
        for (lane, v) in lanes.iter_mut().zip(rest) {
            *v = self.exp_below(self.mul_add(*v, scale, shift));
            *lane += *v;
        }
        fold(lanes, |a, b| a + b)
    }

    /// As [`softmax_in_place`](Self::softmax_in_place), into `out`.
    #[inline(always)]
    pub(crate) fn softmax_into(self, row: &[f32], scale: f32, ahead: Ahead, out: &mut [f32]) {
        if scale <= 0.0 {
            out.copy_from_slice(row);
            return self.softmax_in_place(out, scale);
        }
        let shift = -scale * max_but_nan(row);
        let mut lanes = [0.0f32; LANES];
        for (row, out) in ahead.pieces(row, out) {
            let ((chunks, rest), (outs, out_rest)) = (row.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
            for (chunk, out) in chunks.iter().zip(outs) {
                for lane in 0..LANES {
                    let y = self.exp_below(self.mul_add(chunk[lane], scale, shift));
                    out[lane] = y;
                    lanes[lane] += y;
                }
            }
            for ((lane, &v), out) in lanes.iter_mut().zip(rest).zip(out_rest) {
                *out = self.exp_below(self.mul_add(v, scale, shift));
                *lane += *out;
            }
        }
        divide(out, fold(lanes, |a, b| a + b));
    }
}

/// The polynomial of `x² / 2` with these coefficients as one of `x²`.
const fn in_halves_of_squares<const N: usize>(mut coefficients: [f32; N]) -> [f32; N] {
    let (mut at, mut power) = (N, 1.0);
    while at > 0 {
        at -= 1;
        coefficients[at] *= power;
        power *= 0.5;
    }
    coefficients
}

#[inline(always)]
fn divide(row: &mut [f32], by: f32) {
    let inverse = 1.0 / by;
    for v in row {
        *v *= inverse;
    }
}

/// The largest element that is a number: an instruction for each, where one that keeps NaN is three.
#[inline(always)]
pub(crate) fn max_but_nan(x: &[f32]) -> f32 {
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

    const MATHS: [Math; 2] = [Math { fused: false }, Math { fused: true }];

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        MATHS.into_iter().for_each(check_exp);
    }

    fn check_exp(math: Math) {
        let exp = |x| math.exp(x);
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
    fn the_normal_distribution_is_within_its_bound() {
        MATHS.into_iter().for_each(check_normal_distribution);
    }

    fn check_normal_distribution(math: Math) {
        let erf = |x: f32| 2.0 * math.normal_distribution(x * std::f32::consts::SQRT_2) - 1.0;
        // Abramowitz & Stegun, table 7.1.
        let known = [(0.1, 0.112_462_916), (0.5, 0.520_499_878), (1.0, 0.842_700_793), (2.0, 0.995_322_265)];
        for (x, exact) in known {
            assert!((f64::from(erf(x)) - exact).abs() < 4e-7, "{x}");
            assert!((f64::from(erf(-x)) + exact).abs() < 4e-7, "{x}");
        }
        assert_eq!(math.normal_distribution(0.0), 0.5);
        for x in [5.6, 5.65, 5.7, 1e30, f32::INFINITY] {
            assert!((math.normal_distribution(x) - 1.0).abs() < 4e-7, "{x}");
        }
        assert!((0.0..4e-7).contains(&math.normal_distribution(-5.6)));
        for x in [-5.66, -1e30, f32::NEG_INFINITY] {
            assert_eq!(math.normal_distribution(x), 0.0, "{x}");
        }
        assert!(math.normal_distribution(f32::NAN).is_nan());
    }

    #[test]
    fn mean_and_variance_are_those_of_the_definition() {
        let row = |length: usize, far: f32| -> Vec<f32> {
            (0..length).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0 + if i < 100 { far } else { 0.0 }).collect()
        };
        for (length, far, tolerance) in
            [(1, 0.0, 0.0), (7, 0.0, 1e-6), (300, 0.0, 1e-6), (4096, 0.0, 1e-6), (4096, 1e4, 1e-5)]
        {
            for offset in [0.0, 1000.0] {
                let x: Vec<f32> = row(length, far).iter().map(|x| x + offset).collect();
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / length as f64;
                let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / length as f64;
                let found = mean_and_variance(&x);
                let (of_mean, of_variance) = (f64::from(found.0) - mean, f64::from(found.1) - variance);
                assert!(of_mean.abs() <= 1e-6 * (mean.abs() + variance.sqrt()), "{length} {far} {offset}: {of_mean}");
                assert!(
                    of_variance.abs() <= tolerance * variance,
                    "{length} {far} {offset}: {of_variance} of {variance}"
                );
            }
        }
        let (mean, variance) = mean_and_variance(&[1.0, f32::NAN, 2.0]);
        assert!(mean.is_nan() && variance.is_nan());
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
        MATHS[0].softmax_in_place(&mut with_nan, 1.0);
        assert!(with_nan.iter().all(|v| v.is_nan()), "{with_nan:?}");
    }
}
