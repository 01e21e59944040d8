//! One row of logits as numbers: its peak, its log-sum-exp and its unnormalised weights. Nothing here chooses a token.
//!
//! Everything is written so that the compiler vectorises it for a plain CPU, and uses no library `exp`: the same logits give the
//! same weights, and so the same tokens, on every machine.

use crate::error::{Error, Result};

/// Independent running values per loop: as many as keep two vector registers busy on any CPU.
const LANES: usize = 8;

/// Weights summed together; a draw first finds the block, then the token in it.
pub(super) const BLOCK: usize = 1024;

/// The largest of some logits; NaN if one is.
pub(super) fn largest(logits: &[f32]) -> f32 {
    let mut peaks = [f32::NEG_INFINITY; LANES];
    let mut unusable = [false; LANES];
    let larger = |peak: &mut f32, unusable: &mut bool, x: f32| {
        *peak = if x > *peak { x } else { *peak };
        *unusable |= x.is_nan();
    };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            larger(&mut peaks[lane], &mut unusable[lane], chunk[lane]);
        }
    }
    for &x in rest {
        larger(&mut peaks[0], &mut unusable[0], x);
    }
    if unusable.contains(&true) { f32::NAN } else { peaks.into_iter().fold(f32::NEG_INFINITY, f32::max) }
}

/// The largest logit of a row, from those of its parts.
///
/// Errors: a NaN or +inf logit, or nothing but -inf.
pub(super) fn peak(logits: &[f32], parts: &[f32]) -> Result<f32> {
    let peak = largest(parts);
    if peak.is_nan() || peak == f32::INFINITY {
        let first = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
        let place = first.map(|id| format!("the row of logits, at token id {id} ({})", logits[id]));
        return Err(Error::NotFinite { what: "a logit", place });
    }
    if peak == f32::NEG_INFINITY {
        return Err(Error::NotFinite { what: "every logit", place: Some(format!("a row of {}", logits.len())) });
    }
    Ok(peak)
}

/// `ln Σ exp(logit)`.
pub(super) fn log_sum_exp(logits: &[f32], peak: f32) -> f64 {
    f64::from(peak) + sum_of(logits, |x| exp(x - peak)).ln()
}

/// `Σ exp((logit - peak) / temperature)`.
pub(super) fn mass(logits: &[f32], peak: f32, temperature: f32) -> f64 {
    sum_of(logits, |x| exp((x - peak) / temperature))
}

/// The sum of some positive values, in f64 but for those of eight at a time.
#[inline(always)]
fn sum_of(logits: &[f32], value: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0f64; LANES];
    let (chunks, rest) = logits.as_chunks::<{ 8 * LANES }>();
    for chunk in chunks {
        let mut few = [0f32; LANES];
        for part in chunk.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                few[lane] += value(part[lane]);
            }
        }
        for lane in 0..LANES {
            sums[lane] += f64::from(few[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(value(x))).sum::<f64>()
}

/// Writes `exp((logit - peak) / temperature)` for every logit: 1 for the largest.
pub(super) fn weigh(logits: &[f32], peak: f32, temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    // Divided, not multiplied by the inverse: the inverse of a tiny temperature is infinite, and 0 · inf is NaN.
    weights.extend(logits.iter().map(|x| exp((x - peak) / temperature)));
}

/// The sum of one block of weights.
pub(super) fn sum(weights: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(chunk[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().copied().map(f64::from).sum::<f64>()
}

/// `e^y` for `y <= 0`, to about one unit in the last place; 0 where f32 has no normal number left.
///
/// `y = k·ln 2 + r` with `|r| <= ln 2 / 2`: 2^k is put together from bits and e^r is the Taylor series, whose first omitted term is
/// below 6e-9.
#[inline(always)]
fn exp(y: f32) -> f32 {
    const SMALLEST: f32 = -87.0;
    /// Adding 1.5·2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few bits, so that k times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if y > SMALLEST { y } else { SMALLEST };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let power = f32::from_bits((rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    let r = (clamped - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    if y > SMALLEST { series * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for step in 0..870_000 {
            let y = -(step as f32) * 1e-4;
            let exact = f64::from(y).exp();
            worst = worst.max((f64::from(exp(y)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.5), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn log_sum_exp_is_that_of_f64_at_every_length() {
        for length in [1, 7, 8, 9, 1000] {
            let logits: Vec<f32> = (0..length).map(|i| ((i * 37) % 101) as f32 * 0.2 - 10.0).collect();
            let exact = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&logits, peak(&logits).unwrap()) - exact).abs() < 1e-6);
        }
    }

    fn peak(logits: &[f32]) -> Result<f32> {
        super::peak(logits, &logits.chunks(5).map(largest).collect::<Vec<_>>())
    }

    #[test]
    fn the_peak_sees_every_position() {
        for length in [1, 8, 19] {
            for place in 0..length {
                let mut logits = vec![-1.0; length];
                logits[place] = 2.0;
                assert_eq!(peak(&logits).unwrap(), 2.0);
                for bad in [f32::NAN, f32::INFINITY] {
                    logits[place] = bad;
                    let message = peak(&logits).unwrap_err().to_string();
                    assert!(message.contains(&format!("token id {place} ")), "{message}");
                }
            }
        }
    }

    #[test]
    fn a_row_with_no_possible_token_is_refused() {
        assert!(matches!(peak(&[]), Err(Error::NotFinite { .. })));
        assert!(matches!(peak(&[f32::NEG_INFINITY; 9]), Err(Error::NotFinite { .. })));
    }

    #[test]
    fn a_tiny_temperature_gives_no_nan() {
        let mut weights = Vec::new();
        weigh(&[1.0, 1.0, 0.5, f32::NEG_INFINITY], 1.0, f32::from_bits(1), &mut weights);
        assert_eq!(weights, [1.0, 1.0, 0.0, 0.0]);
    }
}
