//! A weight matrix in whichever form it is stored, as the products see it.

use std::ops::Range;

use burn::tensor::{DType, TensorMetadata};
use burn_flex::FlexTensor;
use half::{bf16, f16};

use super::dot::{InstructionSet, Stored, StoredRows, rows_dot};
use super::packed::PackedRows;
use crate::packed::Format;

/// Rows of weights.
pub(crate) trait Weights<'a>: Copy + Send + Sync {
    /// Weights of a row.
    fn inputs(self) -> usize;
    /// Rows.
    fn outputs(self) -> usize;
    /// These rows alone.
    fn rows(self, range: Range<usize>) -> Self;
    /// The weights where they are f32 already.
    fn as_f32(self) -> Option<&'a [f32]>;
    /// Weights of a row that are widened together.
    fn block(self) -> usize;
    /// Some columns of every row as f32, row after row. A range begins and ends between blocks.
    fn widen(self, columns: Range<usize>, to: &mut [f32]);
}

/// Weights stored one by one.
#[derive(Clone, Copy)]
pub(crate) struct Dense<'a, T> {
    values: &'a [T],
    inputs: usize,
}

impl<'a, T: Stored> Dense<'a, T> {
    /// Rows of `inputs` weights.
    pub(crate) fn new(values: &'a [T], inputs: usize) -> Self {
        assert!(inputs > 0 && values.len().is_multiple_of(inputs));
        Self { values, inputs }
    }

    /// `out[row · stride + m] = vectors[m] · row`, for one to [`VECTORS`](super::dot::VECTORS) vectors.
    pub(crate) fn dots(self, set: InstructionSet, vectors: &[&[f32]], out: &mut [f32], stride: usize) {
        let rows = StoredRows::new(self.values, [self.outputs(), self.inputs, self.inputs]);
        rows_dot(set, vectors, rows, out, stride);
    }
}

impl<'a, T: Stored> Weights<'a> for Dense<'a, T> {
    fn inputs(self) -> usize {
        self.inputs
    }

    fn outputs(self) -> usize {
        self.values.len() / self.inputs
    }

    fn rows(self, range: Range<usize>) -> Self {
        Self { values: &self.values[range.start * self.inputs..range.end * self.inputs], ..self }
    }

    fn as_f32(self) -> Option<&'a [f32]> {
        T::as_f32(self.values)
    }

    fn block(self) -> usize {
        1
    }

    fn widen(self, columns: Range<usize>, to: &mut [f32]) {
        if columns.len() == self.inputs {
            return T::widen_into(self.values, to);
        }
        for (from, to) in self.values.chunks_exact(self.inputs).zip(to.chunks_exact_mut(columns.len())) {
            T::widen_into(&from[columns.clone()], to);
        }
    }
}

/// Shares of a weight for each thread at most: enough for a late one to be waited for briefly.
const SHARES_PER_THREAD: usize = 4;

/// How many of a weight's rows a thread takes at a time: whole `units` of them, and `least` where there are enough for all threads. As many
/// shares as leave no thread with more to do than another: seven equal ones for two threads would cost an eighth of the time.
pub(crate) fn share(rows: usize, unit: usize, least: usize) -> usize {
    let (threads, units) = (rayon::current_num_threads(), rows.div_ceil(unit).max(1));
    let busiest = |share: usize| units.div_ceil(share).div_ceil(threads) * share;
    // A sixteenth more than the others is less than what a smaller number of shares would have to wait for.
    let even = units.div_ceil(threads) + units / threads / 16;
    let shares = (1..=SHARES_PER_THREAD).rev().map(|shares| units.div_ceil(shares * threads));
    let share = shares.filter(|share| share * unit >= least).find(|share| busiest(*share) <= even);
    // One for each thread is even, and never too small.
    share.unwrap_or(units.div_ceil(threads)) * unit
}

/// Work on weights in any form.
pub(crate) trait OnWeights {
    type Output;
    fn run<'a>(self, weights: impl Weights<'a>) -> Self::Output;
}

/// Work on weights stored one by one.
pub(crate) trait OnDense {
    type Output;
    fn run<T: Stored>(self, weights: Dense<'_, T>) -> Self::Output;
}

/// Whether weights of this dtype are read as they are.
pub(crate) fn reads(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || Format::of(dtype).is_some()
}

/// Runs `work` on the weights of a matrix that is not empty.
///
/// # Panics
/// If its dtype is not one that [`reads`] knows.
pub(crate) fn on_weights<W: OnWeights>(matrix: &FlexTensor, work: W) -> W::Output {
    struct AnyForm<W>(W);

    impl<W: OnWeights> OnDense for AnyForm<W> {
        type Output = W::Output;

        fn run<T: Stored>(self, weights: Dense<'_, T>) -> W::Output {
            self.0.run(weights)
        }
    }
    match Format::of(matrix.dtype()) {
        Some(_) => work.run(PackedRows::of(matrix)),
        None => on_dense(matrix, AnyForm(work)),
    }
}

/// Runs `work` on the weights of a matrix that is neither empty nor packed.
///
/// # Panics
/// If its dtype is not one that [`reads`] knows.
pub(crate) fn on_dense<W: OnDense>(matrix: &FlexTensor, work: W) -> W::Output {
    let matrix = super::contiguous(matrix);
    let (shape, start) = (TensorMetadata::shape(&matrix), matrix.layout().start_offset());
    let (range, inputs) = (start..start + shape.num_elements(), shape[1]);
    match matrix.dtype() {
        DType::F32 => work.run(Dense::new(&matrix.storage::<f32>()[range], inputs)),
        DType::F16 => work.run(Dense::new(&matrix.storage::<f16>()[range], inputs)),
        DType::BF16 => work.run(Dense::new(&matrix.storage::<bf16>()[range], inputs)),
        other => unreachable!("weights of {other:?} are not read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_thread_has_more_rows_than_it_must() {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for (threads, rows, unit, least, expected) in [
            // Eight of 112 would be too small, and seven of 128 uneven.
            (2, 896, 4, 128, 152),
            (2, 896, 32, 0, 224),
            (2, 896, 16, 0, 112),
            (2, 4864, 4, 128, 608),
            (2, 128, 4, 128, 64),
            (1, 896, 4, 128, 224),
            (3, 896, 16, 0, 80),
            (16, 5, 4, 128, 4),
            (2, 0, 4, 128, 4),
        ] {
            let found = pool(threads).install(|| share(rows, unit, least));
            assert_eq!(found, expected, "{threads} threads, {rows} rows of {unit}");
        }
        for threads in 1..9 {
            for rows in (1..3000).step_by(7) {
                let share = pool(threads).install(|| share(rows, 16, 0));
                let busiest = rows.div_ceil(share).div_ceil(threads) * share;
                let most = rows.div_ceil(threads).next_multiple_of(16);
                assert!(busiest <= most + most / 16, "{threads} {rows}");
            }
        }
    }
}
