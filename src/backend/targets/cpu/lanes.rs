//! Sums, maxima and element-wise functions of rows, in registers of whatever instruction set there is.
//! Sums run in lanes, in the same order on every processor, which also rounds less than one running sum.

use std::mem::MaybeUninit;

use pulp::{Simd, WithSimd};

use super::rows::{Fetch, HELD};
use super::vector::{Baseline, Join, Larger, Plus, Vector};
#[cfg(target_arch = "x86_64")]
use super::vector::{F32x8, F32x16};
use super::{Ahead, InstructionSet, functions::exp2};

/// Sums that run beside each other: eight registers of AVX2, which leave as many for operands.
const LANES: usize = 64;
/// Sums of exponentials that run beside each other: more leave no registers for the constants.
const EXPONENTIALS: usize = 2 * LINE;
/// Elements of a cache line.
pub(crate) const LINE: usize = 16;
/// Of the narrowest registers there are so many for them.
const REGISTERS: usize = LANES / Baseline::COUNT;

/// Runs `work` compiled for the widest instruction set there is.
///
/// Only what is inlined into it is: the closure must say `#[inline(always)]`, and so must every function it calls. (A closure
/// handed to `Arch::dispatch` itself goes through the adapter from `Fn` to `FnOnce`, which is never inlined.)
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnMut(Math) -> R) -> R {
    vectorised_for(InstructionSet::detect(), work)
}

/// As [`vectorised`], for a set that the processor has.
#[inline(always)]
pub(super) fn vectorised_for<R>(set: InstructionSet, work: impl FnMut(Math) -> R) -> R {
    struct Work<F>(F);

    impl<R, F: FnMut(Math) -> R> WithSimd for Work<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)(Math { register: if S::IS_SCALAR { 0 } else { size_of::<S::f32s>() } })
        }
    }
    set.arch().dispatch(Work(work))
}

/// Functions for the instruction set that a closure is being compiled for, which only the code that picked it knows.
#[derive(Clone, Copy)]
pub(crate) struct Math {
    /// Bytes of a register; 0 for those that every processor has.
    register: usize,
}

/// `$call` with the register of `$math` for `V`: a choice that is made while compiling.
macro_rules! with_registers {
    ($math:expr, $V:ident => $call:expr) => {
        match $math.register {
            #[cfg(target_arch = "x86_64")]
            64 => {
                type $V = F32x16;
                $call
            }
            #[cfg(target_arch = "x86_64")]
            32 => {
                type $V = F32x8;
                $call
            }
            _ => {
                type $V = Baseline;
                $call
            }
        }
    };
}

/// A function of single elements of `IN` rows, of which it makes `OUT`.
pub(crate) trait Elementwise<const IN: usize, const OUT: usize> {
    /// Of some elements at once.
    fn of<V: Vector>(&self, elements: [V; IN]) -> [V; OUT];
}

/// `factor · x`.
struct Times(f32);

impl Elementwise<1, 1> for Times {
    #[inline(always)]
    fn of<V: Vector>(&self, [x]: [V; 1]) -> [V; 1] {
        [x * V::splat(self.0)]
    }
}

/// `x + y`.
pub(crate) struct Sum;

impl Elementwise<2, 1> for Sum {
    #[inline(always)]
    fn of<V: Vector>(&self, [x, y]: [V; 2]) -> [V; 1] {
        [x + y]
    }
}

impl Math {
    /// Element by element of rows of the same length, some at a time: with each [`LINE`] what lies ahead is asked for.
    #[inline(always)]
    pub(crate) fn map<const IN: usize, const OUT: usize, const A: usize, const B: usize>(
        self,
        function: &impl Elementwise<IN, OUT>,
        rows: [&[f32]; IN],
        outs: [&mut [f32]; OUT],
        fetch: Fetch<A, B>,
    ) {
        if fetch.past_caches && outs.iter().all(|out| out.as_ptr().addr().is_multiple_of(16)) {
            with_registers!(self, V => map::<V, IN, OUT, A, B, true>(function, rows, outs, fetch));
        } else {
            with_registers!(self, V => map::<V, IN, OUT, A, B, false>(function, rows, outs, fetch));
        }
    }

    /// Σ x
    #[inline(always)]
    pub(crate) fn sum(self, x: &[f32]) -> f32 {
        with_registers!(self, V => add_up::<V, 1>(
            [x],
            [0.0],
            #[inline(always)]
            |sum, [x]| sum + x,
        ))
    }

    /// Σ of four rows, side by side: four streams come faster from memory than one.
    #[inline(always)]
    pub(crate) fn sum_of_four(self, rows: [&[f32]; 4]) -> f32 {
        with_registers!(self, V => add_up::<V, 4>(
            rows,
            [0.0; 4],
            #[inline(always)]
            |sum, [a, b, c, d]| sum + ((a + b) + (c + d)),
        ))
    }

    /// Σ x·y
    #[inline(always)]
    pub(crate) fn sum2(self, x: &[f32], y: &[f32]) -> f32 {
        with_registers!(self, V => add_up::<V, 2>(
            [x, y],
            [0.0; 2],
            #[inline(always)]
            |sum, [x, y]| x.mul_add(y, sum),
        ))
    }

    /// Σ x·y·z
    #[inline(always)]
    pub(crate) fn sum3(self, x: &[f32], y: &[f32], z: &[f32]) -> f32 {
        with_registers!(self, V => add_up::<V, 3>(
            [x, y, z],
            [0.0; 3],
            #[inline(always)]
            |sum, [x, y, z]| (x * y).mul_add(z, sum),
        ))
    }

    /// Σ (x − centre)·y·z
    #[inline(always)]
    pub(crate) fn sum3_about(self, x: &[f32], centre: f32, y: &[f32], z: &[f32]) -> f32 {
        with_registers!(self, V => {
            let middle = V::splat(centre);
            add_up::<V, 3>(
                [x, y, z],
                [centre, 0.0, 0.0],
                #[inline(always)]
                |sum, [x, y, z]| ((x - middle) * y).mul_add(z, sum),
            )
        })
    }

    /// The mean of the sum of rows, and the mean of the squares of the distances from it: two passes, of which the second finds the rows in the
    /// cache, and which lose no digits where the mean is large.
    #[inline(always)]
    pub(crate) fn mean_and_variance<const N: usize>(self, rows: [&[f32]; N]) -> (f32, f32) {
        let count = rows[0].len() as f32;
        let sum = with_registers!(self, V => add_up::<V, N>(
            rows,
            [0.0; N],
            #[inline(always)]
            |sum, elements| sum + together(elements),
        ));
        let mean = sum / count;
        let squares = with_registers!(self, V => {
            let middle = V::splat(mean);
            let mut neutral = [0.0; N];
            neutral[0] = mean;
            add_up::<V, N>(
                rows,
                neutral,
                #[inline(always)]
                |sum, elements| {
                    let beyond = together(elements) - middle;
                    beyond.mul_add(beyond, sum)
                },
            )
        });
        (mean, squares / count)
    }

    /// The largest element that is a number.
    #[inline(always)]
    pub(crate) fn max_but_nan(self, x: &[f32]) -> f32 {
        with_registers!(self, V => {
            reduce::<V, 1, Larger>(
                [x],
                [f32::NEG_INFINITY],
                f32::NEG_INFINITY,
                #[inline(always)]
                |most, [x]| most.larger(x),
            )
        })
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
        let sum = self.exponentials_in_place(row, scale, self.max_but_nan(row));
        divide(row, sum);
    }

    /// Each element `x` becomes `exp(scale · (x − most))`, which must be at most 2¹²⁷; their sum. Relatively an exponential is within
    /// 1.2·10⁻⁷ and as much again for each halving that it is away from 1.
    #[inline(always)]
    pub(crate) fn exponentials_in_place(self, row: &mut [f32], scale: f32, most: f32) -> f32 {
        let at = row.as_mut_ptr();
        let fetch = Ahead::nowhere().fetch([], []);
        // SAFETY: as many elements, each read before it is written.
        with_registers!(self, V => unsafe { exponentials::<V, 0, 0>(at, at, row.len(), scale, most, fetch) })
    }

    /// As [`softmax_in_place`](Self::softmax_in_place), into `out`.
    #[inline(always)]
    pub(crate) fn softmax_into(self, row: &[f32], scale: f32, ahead: Ahead, out: &mut [f32]) {
        assert_eq!(row.len(), out.len());
        if scale <= 0.0 {
            out.copy_from_slice(row);
            return self.softmax_in_place(out, scale);
        }
        let most = self.max_but_nan(row);
        let (from, length) = (row.as_ptr(), row.len());
        // The exponentials wait for the sum that divides them.
        if ahead.holds(length) {
            let mut held = [const { MaybeUninit::<f32>::uninit() }; HELD];
            let (fetch, to) = (ahead.fetch([row], []), held.as_mut_ptr().cast());
            // SAFETY: as many elements of either.
            let sum =
                with_registers!(self, V => unsafe { exponentials::<V, 1, 0>(from, to, length, scale, most, fetch) });
            // SAFETY: these have just been written.
            let held = unsafe { std::slice::from_raw_parts(held.as_ptr().cast(), length) };
            return self.map(&Times(1.0 / sum), [held], [out], ahead.fetch([], []));
        }
        // What is written is read again.
        let fetch = ahead.kept().fetch([row], [out]);
        // SAFETY: as many elements of either.
        let sum = with_registers!(self, V => unsafe {
            exponentials::<V, 1, 1>(from, out.as_mut_ptr(), length, scale, most, fetch)
        });
        divide(out, sum);
    }
}

#[inline(always)]
fn divide(row: &mut [f32], by: f32) {
    let inverse = 1.0 / by;
    for v in row {
        *v *= inverse;
    }
}

/// `PAST_CACHES` only if all of `outs` begin at a multiple of 16 bytes.
#[inline(always)]
fn map<V: Vector, const IN: usize, const OUT: usize, const A: usize, const B: usize, const PAST_CACHES: bool>(
    function: &impl Elementwise<IN, OUT>,
    rows: [&[f32]; IN],
    mut outs: [&mut [f32]; OUT],
    fetch: Fetch<A, B>,
) {
    let length = rows.first().map_or(0, |row| row.len());
    assert!(rows.iter().all(|row| row.len() == length) && outs.iter().all(|out| out.len() == length));
    let mut start = 0;
    while start + LANES <= length {
        for register in 0..LANES / V::COUNT {
            let at = start + register * V::COUNT;
            // SAFETY: so many elements are there, of each row; past the caches go whole registers of at least 16 bytes.
            unsafe {
                let made = function.of(rows.map(|row| V::load(row.as_ptr().add(at))));
                for (out, made) in outs.iter_mut().zip(made) {
                    let out = out.as_mut_ptr().add(at);
                    if PAST_CACHES { made.store_past_caches(out) } else { made.store(out) }
                }
            }
        }
        (start..start + LANES).step_by(LINE).for_each(|at| fetch.after(at));
        start += LANES;
    }
    while start < length {
        let end = length.min(start + V::COUNT);
        let made = function.of(rows.map(|row| V::load_some(&row[start..end], 0.0)));
        for (out, made) in outs.iter_mut().zip(made) {
            made.store_some(&mut out[start..end]);
        }
        start = end;
    }
}

/// The sum of elements of several rows, from the first on.
#[inline(always)]
fn together<V: Vector, const N: usize>(elements: [V; N]) -> V {
    let mut sum = elements[0];
    for &element in &elements[1..] {
        sum = sum + element;
    }
    sum
}

/// The sum in each lane.
#[inline(always)]
fn add_up<V: Vector, const N: usize>(rows: [&[f32]; N], neutral: [f32; N], add: impl Fn(V, [V; N]) -> V) -> f32 {
    reduce::<V, N, Plus>(rows, neutral, 0.0, add)
}

/// What `step` makes of all elements of rows of one length, the first of [`LANES`] elements in the first lane, and so on, and `J` of the lanes.
/// `neutral` stands where there are no elements left: they must change nothing.
#[inline(always)]
fn reduce<V: Vector, const N: usize, J: Join>(
    rows: [&[f32]; N],
    neutral: [f32; N],
    first: f32,
    step: impl Fn(V, [V; N]) -> V,
) -> f32 {
    let length = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == length));
    let mut lanes = [V::splat(first); REGISTERS];
    let registers = LANES / V::COUNT;
    let mut at = 0;
    while at + LANES <= length {
        for (register, lane) in lanes[..registers].iter_mut().enumerate() {
            // SAFETY: so many elements are there.
            *lane = step(*lane, rows.map(|row| unsafe { V::load(row.as_ptr().add(at + register * V::COUNT)) }));
        }
        at += LANES;
    }
    for lane in &mut lanes[..registers] {
        let end = length.min(at + V::COUNT);
        if at == end {
            break;
        }
        let mut elements = [V::splat(0.0); N];
        for ((elements, row), neutral) in elements.iter_mut().zip(rows).zip(neutral) {
            *elements = V::load_some(&row[at..end], neutral);
        }
        *lane = step(*lane, elements);
        at = end;
    }
    fold::<V, J>(&mut lanes[..registers])
}

/// `to[i] = exp(scale · (from[i] − most))`, and the sum of them; with each [`LINE`] what lies ahead is asked for.
///
/// # Safety
/// So many elements can be read and written. Both may be the same.
#[inline(always)]
unsafe fn exponentials<V: Vector, const A: usize, const B: usize>(
    from: *const f32,
    to: *mut f32,
    length: usize,
    scale: f32,
    most: f32,
    fetch: Fetch<A, B>,
) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        if V::COUNT == EXPONENTIALS / 2 {
            exponentials_abreast::<V, 2, A, B>(from, to, length, scale, most, fetch)
        } else {
            exponentials_abreast::<V, 4, A, B>(from, to, length, scale, most, fetch)
        }
    }
}

/// As [`exponentials`], of `N` registers at a time.
#[inline(always)]
unsafe fn exponentials_abreast<V: Vector, const N: usize, const A: usize, const B: usize>(
    from: *const f32,
    to: *mut f32,
    length: usize,
    scale: f32,
    most: f32,
    fetch: Fetch<A, B>,
) -> f32 {
    assert!(EXPONENTIALS.is_multiple_of(N * V::COUNT));
    let (most, halvings) = (V::splat(most), V::splat(scale * std::f32::consts::LOG2_E));
    let mut lanes = [[V::splat(0.0); N]; EXPONENTIALS / Baseline::COUNT];
    let groups = EXPONENTIALS / (N * V::COUNT);
    let mut at = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while at + EXPONENTIALS <= length {
            for (group, lanes) in lanes[..groups].iter_mut().enumerate() {
                let here = at + group * N * V::COUNT;
                let mut x = [most; N];
                for (register, x) in x.iter_mut().enumerate() {
                    *x = (V::load(from.add(here + register * V::COUNT)) - most) * halvings;
                }
                let y = exp2(x);
                for (register, (lane, y)) in lanes.iter_mut().zip(y).enumerate() {
                    y.store(to.add(here + register * V::COUNT));
                    *lane = *lane + y;
                }
            }
            for line in 0..EXPONENTIALS / LINE {
                fetch.after(at + line * LINE);
            }
            at += EXPONENTIALS;
        }
        for lane in lanes[..groups].as_flattened_mut() {
            let count = V::COUNT.min(length - at);
            if count == 0 {
                break;
            }
            // The exponential of what is missing is 0.
            let x = V::load_some(std::slice::from_raw_parts(from.add(at), count), f32::NEG_INFINITY);
            let [y] = exp2([(x - most) * halvings]);
            y.store_some(std::slice::from_raw_parts_mut(to.add(at), count));
            *lane = *lane + y;
            at += count;
        }
        fold::<V, Plus>(lanes[..groups].as_flattened_mut())
    }
}

/// The lanes of registers, a power of two, as one: the second half joins the first, until one is left. Always in the same order.
#[inline(always)]
fn fold<V: Vector, J: Join>(registers: &mut [V]) -> f32 {
    let mut count = registers.len();
    while count > 1 {
        count /= 2;
        for at in 0..count {
            registers[at] = J::of(registers[at], registers[at + count]);
        }
    }
    registers[0].joined::<J>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_variance_are_those_of_the_definition() {
        let row = |length: usize, far: f32| -> Vec<f32> {
            (0..length).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0 + if i < 100 { far } else { 0.0 }).collect()
        };
        for (length, far, tolerance) in
            [(1, 0.0, 0.0), (7, 0.0, 1e-6), (300, 0.0, 1e-6), (4096, 0.0, 1e-6), (4096, 1e4, 1e-6)]
        {
            for offset in [0.0, 1000.0] {
                let x: Vec<f32> = row(length, far).iter().map(|x| x + offset).collect();
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / length as f64;
                let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / length as f64;
                for set in InstructionSet::available() {
                    let found = vectorised_for(set, |math| math.mean_and_variance([&x[..]]));
                    let (of_mean, of_variance) = (f64::from(found.0) - mean, f64::from(found.1) - variance);
                    let what = format!("{set:?} {length} {far} {offset}");
                    assert!(of_mean.abs() <= 1e-6 * (mean.abs() + variance.sqrt()), "{what}: {of_mean}");
                    assert!(of_variance.abs() <= tolerance * variance, "{what}: {of_variance} of {variance}");
                }
            }
        }
        for set in InstructionSet::available() {
            let (mean, variance) = vectorised_for(set, |math| math.mean_and_variance([&[1.0, f32::NAN, 2.0][..]]));
            assert!(mean.is_nan() && variance.is_nan());
        }
    }

    #[test]
    fn sums_and_maximum_cover_every_length() {
        for (length, set) in
            (0..140).flat_map(|length| InstructionSet::available().into_iter().map(move |set| (length, set)))
        {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
            vectorised_for(set, |math| {
                // Small integers: every sum is exact, whatever its order.
                assert_eq!(math.sum(&x), x.iter().sum::<f32>());
                assert_eq!(math.sum2(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
                assert_eq!(math.sum3(&x, &x, &x), x.iter().map(|v| v * v * v).sum::<f32>());
                let about = x.iter().map(|v| (v - 2.0) * v * v).sum::<f32>();
                assert_eq!(math.sum3_about(&x, 2.0, &x, &x), about);
                assert_eq!(math.max_but_nan(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            });
        }
        for set in InstructionSet::available() {
            let mut with_nan = vec![1.0; 40];
            with_nan[17] = f32::NAN;
            assert_eq!(vectorised_for(set, |math| math.max_but_nan(&with_nan)), 1.0);
            vectorised_for(set, |math| math.softmax_in_place(&mut with_nan, 1.0));
            assert!(with_nan.iter().all(|v| v.is_nan()), "{with_nan:?}");
        }
    }

    #[test]
    fn sums_run_in_the_same_order_on_every_processor() {
        let x: Vec<f32> = (0..1003).map(|i| ((i * 7919) % 2003) as f32 * 0.917 - 900.0).collect();
        let sums = InstructionSet::available().into_iter().map(|set| vectorised_for(set, |math| math.sum(&x)));
        let sums: Vec<f32> = sums.collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    }

    #[test]
    fn softmax_is_that_of_the_definition_into_another_row_and_in_place() {
        for (length, set) in [1, 5, 64, 100, 300]
            .into_iter()
            .flat_map(|length| InstructionSet::available().into_iter().map(move |set| (length, set)))
        {
            let x: Vec<f32> = (0..length).map(|i| ((i * 7919) % 2003) as f32 / 100.0 - 10.0).collect();
            for scale in [0.7, -0.3, 0.0] {
                let weights: Vec<f64> = x.iter().map(|x| (f64::from(*x) * f64::from(scale as f32)).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let (mut out, mut in_place) = (vec![f32::NAN; length], x.clone());
                vectorised_for(set, |math| {
                    math.softmax_into(&x, scale as f32, Ahead::nowhere(), &mut out);
                    math.softmax_in_place(&mut in_place, scale as f32);
                });
                for ((out, in_place), weight) in out.iter().zip(&in_place).zip(&weights) {
                    let exact = weight / sum;
                    for found in [out, in_place] {
                        assert!(
                            (f64::from(*found) - exact).abs() <= 1e-5 * exact,
                            "{set:?} {length} {scale}: {found}, {exact}"
                        );
                    }
                }
            }
        }
    }
}
