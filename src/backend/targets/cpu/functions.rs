//! The exponential and the normal distribution, for registers of any instruction set.

use super::vector::Vector;

/// eˣ, within 2 units in the last place; 0 below −87.69 (where f32 has a few bits left), infinite above 88.38 (where f32 is by 88.73), NaN
/// for NaN.
///
/// Source: the range reduction of Cephes `expf` (Moshier 1992), and the polynomial of degree 5 with the smallest largest relative error, 10⁻⁷, of
/// those that begin with 1 + x.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    // What rounds to −127 and 128 powers of two, of which an exponent makes 0 and ∞.
    let x = x.at_least(-88.0).at_most(89.0);
    let shifted = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let power = shifted - V::splat(ROUND);
    let r = power.mul_add(V::splat(2.121_944_4e-4), power.mul_add(V::splat(-0.693_359_4), x));
    // For NaN the polynomial is NaN, whatever the power is.
    r.polynomial(EXP) * shifted.low_bits_as_exponent()
}

/// 2ˣ for `x` of at most 127, within 2 units in the last place; 0 below −126.5, NaN for NaN. Three multiplications shorter than [`exp`], for
/// callers whose `x` is a product that was rounded anyway.
///
/// Each step is taken for all registers before the next: a processor looks for work that does not wait only so far ahead.
#[inline(always)]
pub(crate) fn exp2<V: Vector, const N: usize>(mut x: [V; N]) -> [V; N] {
    const EXP2: [f32; 6] = of_multiples(std::f32::consts::LN_2, EXP);
    let round = V::splat(ROUND);
    let mut shifted = x;
    for (x, shifted) in x.iter_mut().zip(&mut shifted) {
        *x = x.at_least(-127.0);
        *shifted = *x + round;
    }
    for (x, &shifted) in x.iter_mut().zip(&shifted) {
        *x = *x - (shifted - round);
    }
    let mut y = [V::splat(EXP2[0]); N];
    for &coefficient in &EXP2[1..] {
        for (y, &x) in y.iter_mut().zip(&x) {
            *y = y.mul_add(x, V::splat(coefficient));
        }
    }
    for (y, &shifted) in y.iter_mut().zip(&shifted) {
        *y = *y * shifted.low_bits_as_exponent();
    }
    y
}

/// Adding and subtracting 1.5·2²³ rounds to the nearest integer without an instruction that SSE2 lacks. In between the low bits of the sum
/// are the integer, with 127 more what an exponent of that power of two is: no conversion is needed.
const ROUND: f32 = 12_582_912.0 + 127.0;

/// Of eˣ between −ln 2 / 2 and ln 2 / 2.
const EXP: [f32; 6] = [8.312_567e-3, 4.189_019_7e-2, 1.666_711_4e-1, 4.999_923e-1, 1.0, 1.0];

/// `Φ(x) = (1 + erf(x / √2)) / 2`, within 4·10⁻⁷ absolutely, and 0 from −5.4 down, where an f32 of it would be a rounding that a large
/// `x` multiplies; NaN for NaN.
///
/// Source: the odd over even rational function of degrees 9 and 10 with the smallest largest error, 10⁻⁷, on ±5.4, found by iteratively reweighted
/// least squares (Lawson 1961). It was fitted to `Φ(x) + 2·10⁻⁷ (x / 5.4)¹⁶`, so that it is beyond 1 in the end whichever way it is rounded;
/// further out its slope goes on, and takes it further beyond.
#[inline(always)]
pub(crate) fn normal_distribution<V: Vector>(x: V) -> V {
    const SATURATED: f32 = 5.4;
    const ODD: [f32; 5] = [6.792_559_4e-6, 3.751_690_4e-4, 5.920_072_6e-3, 5.509_114_6e-2, 3.989_417e-1];
    const EVEN: [f32; 6] = [5.651_535e-7, 1.346_046_3e-4, 3.058_796_3e-3, 4.064_776_4e-2, 3.047_505_3e-1, 1.0];
    let square = (x * x).at_most(SATURATED * SATURATED);
    x.mul_add(square.polynomial(ODD) / square.polynomial(EVEN), V::splat(0.5)).at_least(0.0).at_most(1.0)
}

/// The polynomial of `factor · x` with these coefficients as one of `x`, rounded from f64.
const fn of_multiples<const N: usize>(factor: f32, mut coefficients: [f32; N]) -> [f32; N] {
    let (mut at, mut power) = (N, 1.0);
    while at > 0 {
        at -= 1;
        coefficients[at] = (coefficients[at] as f64 * power) as f32;
        power *= factor as f64;
    }
    coefficients
}

#[cfg(test)]
mod tests {
    use super::super::lanes::{Elementwise, vectorised_for};
    use super::super::{Ahead, InstructionSet};
    use super::*;

    struct Exp;

    impl Elementwise<1, 1> for Exp {
        #[inline(always)]
        fn of<V: Vector>(&self, [x]: [V; 1]) -> [V; 1] {
            [exp(x)]
        }
    }

    struct Exp2;

    impl Elementwise<1, 1> for Exp2 {
        #[inline(always)]
        fn of<V: Vector>(&self, x: [V; 1]) -> [V; 1] {
            exp2(x)
        }
    }

    struct Phi;

    impl Elementwise<1, 1> for Phi {
        #[inline(always)]
        fn of<V: Vector>(&self, [x]: [V; 1]) -> [V; 1] {
            [normal_distribution(x)]
        }
    }

    fn of(set: InstructionSet, function: &impl Elementwise<1, 1>, x: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len()];
        vectorised_for(set, |math| {
            math.map(function, [x], [&mut out], Ahead::nowhere().fetch([], []));
        });
        out
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let x: Vec<f32> = (-870_000..880_000).map(|i| i as f32 * 1e-4).collect();
        for set in InstructionSet::available() {
            let errors = x.iter().zip(of(set, &Exp, &x)).map(|(x, y)| {
                let exact = f64::from(*x).exp();
                (f64::from(y) - exact).abs() / exact
            });
            let worst = errors.fold(0.0, f64::max);
            assert!(worst < 2.0 * f64::from(f32::EPSILON), "{set:?}: {worst}");
            let none = [-87.69, -88.0, -103.0, -1e4, f32::MIN, f32::NEG_INFINITY];
            assert_eq!(of(set, &Exp, &none), [0.0; 6], "{set:?}");
            assert_eq!(of(set, &Exp, &[88.73, 1e4, f32::MAX, f32::INFINITY]), [f32::INFINITY; 4], "{set:?}");
            assert_eq!(of(set, &Exp, &[0.0]), [1.0]);
            assert!(of(set, &Exp, &[f32::NAN; 17]).iter().all(|y| y.is_nan()));
        }
    }

    #[test]
    fn exp2_is_within_two_units_in_the_last_place() {
        let x: Vec<f32> = (-1_260_000..=1_270_000).map(|i| i as f32 * 1e-4).collect();
        for set in InstructionSet::available() {
            let errors = x.iter().zip(of(set, &Exp2, &x)).map(|(x, y)| {
                let exact = f64::from(*x).exp2();
                (f64::from(y) - exact).abs() / exact
            });
            let worst = errors.fold(0.0, f64::max);
            assert!(worst < 2.0 * f64::from(f32::EPSILON), "{set:?}: {worst}");
            let none = [-126.51, -127.0, -200.0, f32::MIN, f32::NEG_INFINITY];
            assert_eq!(of(set, &Exp2, &none), [0.0; 5], "{set:?}");
            assert_eq!(of(set, &Exp2, &[0.0, 1.0, -1.0, -3.0]), [1.0, 2.0, 0.5, 0.125], "{set:?}");
            assert!(of(set, &Exp2, &[f32::NAN; 17]).iter().all(|y| y.is_nan()));
        }
    }

    #[test]
    fn the_normal_distribution_is_within_its_bound() {
        // Abramowitz & Stegun, table 7.1.
        let known = [(0.1, 0.112_462_916), (0.5, 0.520_499_878), (1.0, 0.842_700_793), (2.0, 0.995_322_265)];
        for set in InstructionSet::available() {
            let phi = |x: f32| of(set, &Phi, &[x])[0];
            let erf = |x: f32| 2.0 * phi(x * std::f32::consts::SQRT_2) - 1.0;
            for (x, exact) in known {
                assert!((f64::from(erf(x)) - exact).abs() < 4e-7, "{set:?} {x}");
                assert!((f64::from(erf(-x)) + exact).abs() < 4e-7, "{set:?} {x}");
            }
            assert_eq!(phi(0.0), 0.5);
            for x in [5.2, 5.3, 5.39, 5.4, 5.41, 1e30, f32::INFINITY] {
                assert!((phi(x) - 1.0).abs() < 4e-7, "{set:?} {x}");
            }
            for x in [-5.2, -5.3, -5.35, -5.39] {
                assert!((0.0..4e-7).contains(&phi(x)), "{set:?} {x}");
            }
            for x in [-5.4, -6.0, -1e30, f32::NEG_INFINITY] {
                assert_eq!(phi(x), 0.0, "{set:?} {x}");
            }
            assert!(phi(f32::NAN).is_nan());
        }
    }
}
