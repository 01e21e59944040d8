//! Sums of rows of a stored matrix, each times a factor: what attention makes of its values. Reads f32, f16 and bf16 as they lie in memory,
//! accumulates in f32, in registers of any instruction set.

use super::dot::{InstructionSet, Stored, StoredRows};
use crate::targets::cpu::vector::{Baseline, Vector};

/// Registers of a row that are added to at a time.
const REGISTERS: usize = 4;

/// `out[m · length + i] = Σ factors[m · count + row] · rows[row][i]`, for as many `m` as `out` has room for.
///
/// # Panics
/// If there is not one factor for each row and sum.
pub(crate) fn rows_sum<T: Stored>(set: InstructionSet, factors: &[f32], rows: StoredRows<T>, out: &mut [f32]) {
    assert!(rows.length() > 0 && out.len().is_multiple_of(rows.length()));
    assert_eq!(factors.len(), out.len() / rows.length() * rows.count());
    match set {
        // SAFETY: `detect` saw the instruction set.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 | InstructionSet::Amx => unsafe { x86::sums_avx512(factors, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { x86::sums_avx2(factors, rows, out) },
        InstructionSet::Portable => sums::<Baseline, T>(factors, rows, out),
    }
}

/// Block by block of the rows, each for all sums, of which two at a time read a row once for both.
#[inline(always)]
fn sums<V: Vector, T: Stored>(factors: &[f32], rows: StoredRows<T>, out: &mut [f32]) {
    out.fill(0.0);
    for (range, block) in rows.blocks() {
        let mut factors = factors.chunks_exact(rows.count());
        let mut outs = out.chunks_exact_mut(rows.length());
        while let (Some(first), Some(to)) = (factors.next(), outs.next()) {
            let first = &first[range.clone()];
            match (factors.next(), outs.next()) {
                (Some(second), Some(also)) => some_sums::<V, T, 2>([first, &second[range.clone()]], block, [to, also]),
                _ => some_sums::<V, T, 1>([first], block, [to]),
            }
        }
    }
}

#[inline(always)]
fn some_sums<V: Vector, T: Stored, const M: usize>(
    factors: [&[f32]; M],
    rows: StoredRows<T>,
    mut outs: [&mut [f32]; M],
) {
    let length = rows.length();
    assert!(factors.iter().all(|factors| factors.len() == rows.count()));
    assert!(outs.iter().all(|out| out.len() == length));
    let mut at = 0;
    while at + REGISTERS * V::COUNT <= length {
        // SAFETY: so many values are there, of each row and to be written.
        unsafe { columns::<V, T, M, REGISTERS>(factors, rows, at, &mut outs) };
        at += REGISTERS * V::COUNT;
    }
    while at + V::COUNT <= length {
        // SAFETY: as above.
        unsafe { columns::<V, T, M, 1>(factors, rows, at, &mut outs) };
        at += V::COUNT;
    }
    for (factors, out) in factors.into_iter().zip(outs) {
        for (at, out) in out.iter_mut().enumerate().skip(at) {
            *out += factors.iter().enumerate().map(|(row, factor)| factor * rows.row(row)[at].widen()).sum::<f32>();
        }
    }
}

/// Adds to `R` registers of each sum, from column `at` on.
///
/// # Safety
/// Rows and `outs` are that long, and there are as many `factors` as rows.
#[inline(always)]
unsafe fn columns<V: Vector, T: Stored, const M: usize, const R: usize>(
    factors: [&[f32]; M],
    rows: StoredRows<T>,
    at: usize,
    outs: &mut [&mut [f32]; M],
) {
    let mut sums = [[V::splat(0.0); R]; M];
    for (sums, out) in sums.iter_mut().zip(&*outs) {
        for (register, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *sum = unsafe { V::load(out.as_ptr().add(at + register * V::COUNT)) };
        }
    }
    for row in 0..rows.count() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut values = [V::splat(0.0); R];
            for (register, value) in values.iter_mut().enumerate() {
                *value = T::load(rows.at(row, at + register * V::COUNT));
            }
            for (sums, factors) in sums.iter_mut().zip(factors) {
                let factor = V::splat(*factors.get_unchecked(row));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = factor.mul_add(value, *sum);
                }
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(outs) {
        for (register, sum) in sums.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { sum.store(out.as_mut_ptr().add(at + register * V::COUNT)) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Stored, StoredRows, sums};
    use crate::targets::cpu::vector::{F32x8, F32x16};

    macro_rules! sums {
        ($name:ident, $features:literal, $vector:ty) => {
            /// As [`sums`], on a processor with these features.
            #[target_feature(enable = $features)]
            pub(super) fn $name<T: Stored>(factors: &[f32], rows: StoredRows<T>, out: &mut [f32]) {
                sums::<$vector, T>(factors, rows, out)
            }
        };
    }
    sums!(sums_avx512, "avx512f", F32x16);
    sums!(sums_avx2, "avx2,fma,f16c", F32x8);
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn check<T: Stored>(narrow: impl Fn(f32) -> T) {
        for length in [1, 7, 8, 16, 33, 64, 100, 131] {
            for (count, pitch) in [(1, length), (2, length + 3), (37, length), (37, length + 64), (150, length)] {
                let values: Vec<T> =
                    (0..(count - 1) * pitch + length).map(|i| narrow(((i * 5) % 17) as f32 - 8.0)).collect();
                for m in [0, 1, 2, 7] {
                    let factors: Vec<f32> = (0..m * count).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
                    for set in InstructionSet::available() {
                        let mut out = vec![f32::NAN; m * length];
                        rows_sum(set, &factors, StoredRows::new(&values, [count, length, pitch]), &mut out);
                        for (factors, out) in factors.chunks_exact(count).zip(out.chunks_exact(length)) {
                            for (at, &out) in out.iter().enumerate() {
                                // Small integers: every sum is exact, whatever its order.
                                let terms =
                                    factors.iter().zip(values.chunks(pitch)).map(|(f, row)| f * row[at].widen());
                                assert_eq!(out, terms.sum::<f32>(), "{set:?} {length} {count} {m}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_format_count_and_length_agrees_with_the_sum() {
        check::<f32>(|v| v);
        check::<f16>(f16::from_f32);
        check::<bf16>(bf16::from_f32);
    }

    #[test]
    fn of_no_rows_the_sum_is_zero() {
        let mut out = [f32::NAN; 6];
        rows_sum(InstructionSet::detect(), &[], StoredRows::<f32>::new(&[], [0, 3, 3]), &mut out);
        assert_eq!(out, [0.0; 6]);
    }
}
