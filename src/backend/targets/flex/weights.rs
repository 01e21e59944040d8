//! A weight matrix in whichever form it is stored, as the products see it.

use std::ops::Range;

use burn::tensor::{DType, Element, TensorMetadata};
use burn_flex::FlexTensor;
use half::{bf16, f16};

use super::arranged::{self, ArrangedRows};
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
    fn as_f32(self) -> Option<&'a [f32]> {
        None
    }
    /// The weights where they are arranged as the tiles take them.
    fn arranged(self) -> Option<ArrangedRows<'a>> {
        None
    }
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

/// Part of the work on weights of so many rows: which of them, and which of its rows.
pub(crate) type Share = Vec<(usize, Range<usize>)>;

/// The rows of weights, one weight after another, in shares for the threads to take: whole `units` of each weight, and `least` rows at least
/// where there are enough for all threads. They become shorter: long ones are fast, and at the end no thread waits long for another.
pub(crate) fn shares(rows: &[usize], unit: usize, least: usize) -> impl Iterator<Item = Share> + Send {
    let threads = rayon::current_num_threads();
    let mut left: usize = rows.iter().map(|rows| rows.next_multiple_of(unit)).sum();
    let least = least.min(left.div_ceil(threads)).next_multiple_of(unit).max(unit);
    let mut weights = rows.iter().copied().enumerate().collect::<Vec<_>>().into_iter();
    // What is left of the weight at which the last share ended.
    let mut rest = (0, 0..0);
    std::iter::from_fn(move || {
        let mut size = (left / (2 * threads)).next_multiple_of(unit).max(least).min(left);
        left -= size;
        let mut share = Vec::new();
        while size > 0 {
            if rest.1.is_empty() {
                let (weight, rows) = weights.next()?;
                rest = (weight, 0..rows);
                continue;
            }
            let (weight, Range { start, end }) = rest.clone();
            let part = start..end.min(start + size);
            size -= part.len().next_multiple_of(unit);
            rest.1.start = part.end;
            share.push((weight, part));
        }
        (!share.is_empty()).then_some(share)
    })
}

/// Work on weights in any form.
pub(crate) trait OnWeights {
    type Output;
    fn run<'a>(self, weights: impl Weights<'a>) -> Self::Output;
}

/// Work on weights stored one by one, all in the same format.
pub(crate) trait OnDense {
    type Output;
    fn run<T: Stored>(self, weights: Vec<Dense<'_, T>>) -> Self::Output;
}

/// Whether weights of this dtype are read as they are.
pub(crate) fn reads(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || Format::of(dtype).is_some() || arranged::is(dtype)
}

/// Runs `work` on the weights of a matrix that is not empty.
///
/// # Panics
/// If its dtype is not one that [`reads`] knows.
pub(crate) fn on_weights<W: OnWeights>(matrix: &FlexTensor, work: W) -> W::Output {
    struct AnyForm<W>(W);

    impl<W: OnWeights> OnDense for AnyForm<W> {
        type Output = W::Output;

        fn run<T: Stored>(self, weights: Vec<Dense<'_, T>>) -> W::Output {
            self.0.run(weights[0])
        }
    }
    match Format::of(matrix.dtype()) {
        Some(_) => work.run(PackedRows::of(matrix)),
        None if arranged::is(matrix.dtype()) => work.run(ArrangedRows::of(matrix)),
        None => on_dense(&[matrix], AnyForm(work)),
    }
}

/// Runs `work` on the weights of matrices that are neither empty, packed nor arranged.
///
/// # Panics
/// If they are not of one dtype, or of one that [`reads`] does not know.
pub(crate) fn on_dense<W: OnDense>(matrices: &[&FlexTensor], work: W) -> W::Output {
    let matrices: Vec<FlexTensor> = matrices.iter().map(|matrix| super::contiguous(matrix)).collect();
    match matrices[0].dtype() {
        DType::F32 => work.run(dense::<f32>(&matrices)),
        DType::F16 => work.run(dense::<f16>(&matrices)),
        DType::BF16 => work.run(dense::<bf16>(&matrices)),
        other => unreachable!("weights of {other:?} are not read"),
    }
}

fn dense<T: Stored + Element>(matrices: &[FlexTensor]) -> Vec<Dense<'_, T>> {
    let weights = matrices.iter().map(|matrix| {
        assert_eq!(matrix.dtype(), T::dtype());
        let (shape, start) = (TensorMetadata::shape(matrix), matrix.layout().start_offset());
        Dense::new(&matrix.storage::<T>()[start..start + shape.num_elements()], shape[1])
    });
    weights.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_shorter_and_are_made_of_whole_units() {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let shares = |threads, rows: &[usize], unit, least| -> Vec<Share> {
            pool(threads).install(|| shares(rows, unit, least).collect())
        };
        let lengths = |threads, rows, unit, least| -> Vec<usize> {
            let shares = shares(threads, &[rows], unit, least).into_iter();
            shares.map(|share| share.into_iter().map(|(_, rows)| rows.len()).sum()).collect()
        };
        assert_eq!(lengths(2, 896, 32, 0), [224, 192, 128, 96, 64, 64, 32, 32, 32, 32]);
        assert_eq!(lengths(2, 896, 4, 128), [224, 168, 128, 128, 128, 120]);
        // Not fewer than threads.
        assert_eq!(lengths(2, 128, 4, 128), [64, 64]);
        assert_eq!(lengths(16, 5, 4, 128), [4, 1]);
        assert!(lengths(2, 0, 4, 128).is_empty());
        for threads in 1..9 {
            for rows in (1..3000).step_by(7) {
                let lengths = lengths(threads, rows, 16, 48);
                assert_eq!(lengths.iter().sum::<usize>(), rows);
                assert!(lengths.is_sorted_by(|a, b| a >= b), "{threads} {rows}");
                assert!(lengths[..lengths.len() - 1].iter().all(|length| length.is_multiple_of(16)));
            }
        }
        // Each weight begins with a unit; one that ends within a unit, or has no rows, is in no other's way.
        assert_eq!(shares(1, &[10, 0, 20], 8, 8), [vec![(0, 0..10), (2, 0..8)], vec![(2, 8..16)], vec![(2, 16..20)]]);
        for threads in 1..5 {
            for rows in [[896, 128, 128], [50, 3, 7], [0, 16, 1]] {
                let mut ends = [0; 3];
                for (weight, part) in shares(threads, &rows, 16, 48).into_iter().flatten() {
                    assert!(part.start == ends[weight] && part.start.is_multiple_of(16) && !part.is_empty());
                    ends[weight] = part.end;
                }
                assert_eq!(ends, rows);
            }
        }
    }
}
