//! The exponential and the normal distribution, for registers of any instruction set.

use super::vector::Vector;

/// eˣ, within 2 units in the last place; 0 below −87.69 (where f32 has a few bits left), infinite above 88.38 (where f32 is by 88.73), NaN
/// for NaN.
///
/// Source: the range reduction of Cephes `expf` (Moshier 1992), and the polynomial of degree 5 with the smallest largest relative error, 10⁻⁷, of
/// those that begin with 1 + x.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    exp_below(x.at_most(INFINITE))
}

/// As [`exp`], for `x` of at most 88.
#[inline(always)]
pub(super) fn exp_below<V: Vector>(x: V) -> V {
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer without an instruction that SSE2 lacks.
    const ROUND: f32 = 12_582_912.0;
    let x = x.at_least(ZERO);
    let shifted = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let power = shifted - V::splat(ROUND);
    let r = power.mul_add(V::splat(2.121_944_4e-4), power.mul_add(V::splat(-0.693_359_4), x));
    let p = r.polynomial([8.312_567e-3, 4.189_019_7e-2, 1.666_711_4e-1, 4.999_923e-1, 1.0, 1.0]);
    // The low bits of `shifted` are the integer `power`: moved to the exponent they make 2^power without a conversion, which would have to look
    // for NaN; for which `p` is NaN whatever they are.
    p * shifted.power_of_two()
}

/// What rounds to −127 and 128 powers of two, of which an exponent makes 0 and ∞.
const ZERO: f32 = -88.0;
const INFINITE: f32 = 89.0;

/// `Φ(x) = (1 + erf(x / √2)) / 2`, within 4·10⁻⁷ absolutely, and 0 from −5.75 down, where an f32 of it would be a rounding that a large
/// `x` multiplies; NaN for NaN.
///
/// Source: the rational approximation of erf that Eigen and XLA use, odd over even polynomial, which is ±1 from ±4 on.
#[inline(always)]
pub(crate) fn normal_distribution<V: Vector>(x: V) -> V {
    // Where the quotient is beyond ±1 for certain, whichever way it is rounded.
    const SATURATED: f32 = 5.75;
    const ODD: [f32; 7] = in_halves_of_squares(
        0.5 * std::f32::consts::FRAC_1_SQRT_2,
        [-2.726_142_3e-10, 2.770_681_4e-8, -2.101_024e-6, -5.692_506_5e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2],
    );
    const EVEN: [f32; 5] =
        in_halves_of_squares(1.0, [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2]);
    let inside = x.at_least(-SATURATED).at_most(SATURATED);
    let square = inside * inside;
    (V::splat(0.5) + inside * square.polynomial(ODD) / square.polynomial(EVEN)).at_least(0.0)
}

/// `scale` times the polynomial of `x² / 2` with these coefficients as one of `x²`.
const fn in_halves_of_squares<const N: usize>(scale: f32, mut coefficients: [f32; N]) -> [f32; N] {
    let (mut at, mut power) = (N, scale);
    while at > 0 {
        at -= 1;
        coefficients[at] *= power;
        power *= 0.5;
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
            for x in [5.6, 5.65, 5.7, 5.75, 5.8, 1e30, f32::INFINITY] {
                assert!((phi(x) - 1.0).abs() < 4e-7, "{set:?} {x}");
            }
            for x in [-5.6, -5.65, -5.66, -5.7] {
                assert!((0.0..4e-7).contains(&phi(x)), "{set:?} {x}");
            }
            for x in [-5.75, -6.0, -1e30, f32::NEG_INFINITY] {
                assert_eq!(phi(x), 0.0, "{set:?} {x}");
            }
            assert!(phi(f32::NAN).is_nan());
        }
    }
}
