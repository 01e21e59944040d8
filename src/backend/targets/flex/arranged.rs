//! Weights in f32 laid out when they are loaded, as the tiles take them: what a product would lay out again each time lies ready.
//!
//! So many rows lie side by side in a panel, term by term a value of each; the last panel is filled up with zeros. In `x · Wᵀ` a panel is
//! read as it lies, and `x` too. In `x · W` it is the weights of a sum that lie one after another, as long as the panel is wide.

use std::ops::Range;

use burn::tensor::{DType, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::contiguous;
use super::lines::{self, CacheLine};
use super::transpose::transpose;
use super::weights::Weights;
use crate::packed::ARRANGED;

/// Rows of a panel: as many as the widest tile has lanes, and a multiple of what any other has.
pub(crate) const LANES: usize = 48;

/// A matrix of f32, arranged.
pub(crate) fn tensor(weight: &FlexTensor) -> FlexTensor {
    let shape = TensorMetadata::shape(weight);
    let (outputs, inputs) = (shape[0], shape[1]);
    let weight = contiguous(weight);
    let values = &weight.storage::<f32>()[weight.layout().start_offset()..][..outputs * inputs];
    let panel = LANES * inputs;
    let lines = outputs.div_ceil(LANES) * panel * size_of::<f32>() / lines::LINE;
    let bytes = lines::bytes(lines, |memory: &mut [CacheLine]| {
        if panel > 0 {
            let panels = bytemuck::cast_slice_mut::<_, f32>(memory).par_chunks_exact_mut(panel);
            panels.zip(values.par_chunks(panel)).for_each(|(panel, rows)| {
                transpose(rows, inputs, [rows.len() / inputs, inputs], panel, LANES);
            });
        }
    });
    FlexTensor::new(bytes, Layout::contiguous(shape), ARRANGED)
}

/// Whether weights of this dtype are arranged.
pub(crate) fn is(dtype: DType) -> bool {
    dtype == ARRANGED
}

/// Rows of arranged weights.
#[derive(Clone, Copy)]
pub(crate) struct ArrangedRows<'a> {
    /// The whole matrix.
    values: &'a [f32],
    inputs: usize,
    /// The first of these rows in it, and how many they are.
    first: usize,
    outputs: usize,
}

impl<'a> ArrangedRows<'a> {
    /// The rows of a tensor made by [`tensor`].
    ///
    /// # Panics
    /// If it is a view of another: arranged weights are whole.
    pub(crate) fn of(matrix: &'a FlexTensor) -> Self {
        let shape = TensorMetadata::shape(matrix);
        assert!(is(matrix.dtype()) && matrix.layout().is_contiguous() && matrix.layout().start_offset() == 0);
        let (values, [outputs, inputs]) = (bytemuck::cast_slice(matrix.bytes()), [shape[0], shape[1]]);
        assert_eq!(values.len(), outputs.div_ceil(LANES) * LANES * inputs);
        Self { values, inputs, first: 0, outputs }
    }

    /// What follows the weight that a row has for a term: those of the other rows of its panel, [`LANES`] from one term to the next.
    pub(crate) fn from(self, row: usize, term: usize) -> &'a [f32] {
        let row = self.first + row;
        &self.values[row / LANES * self.panel() + term * LANES + row % LANES..]
    }

    /// Values from a panel to the next.
    pub(crate) fn panel(self) -> usize {
        LANES * self.inputs
    }
}

impl<'a> Weights<'a> for ArrangedRows<'a> {
    fn inputs(self) -> usize {
        self.inputs
    }

    fn outputs(self) -> usize {
        self.outputs
    }

    fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.outputs);
        Self { first: self.first + range.start, outputs: range.len(), ..self }
    }

    fn arranged(self) -> Option<ArrangedRows<'a>> {
        Some(self)
    }

    fn block(self) -> usize {
        1
    }

    fn widen(self, columns: Range<usize>, to: &mut [f32]) {
        let count = columns.len();
        let mut row = 0;
        while row < self.outputs {
            let lanes = (LANES - (self.first + row) % LANES).min(self.outputs - row);
            let to = &mut to[row * count..][..lanes * count];
            transpose(self.from(row, columns.start), LANES, [count, lanes], to, count);
            row += lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Shape;

    use super::*;
    use crate::ops::embedding::flex::unpacked;
    use crate::targets::flex::packed::tests::values as some_values;

    #[test]
    fn parts_are_widened_to_what_they_were() {
        for [outputs, inputs] in [[1, 1], [48, 7], [100, 33], [96, 8], [0, 4]] {
            let plain = some_values(1, outputs * inputs);
            let arranged = tensor(&super::super::tensor(plain.clone(), Shape::from(vec![outputs, inputs])));
            assert_eq!(
                (TensorMetadata::shape(&arranged), arranged.dtype()),
                (Shape::from(vec![outputs, inputs]), ARRANGED)
            );
            assert_eq!(unpacked(arranged.clone()).storage::<f32>(), plain);
            let rows = ArrangedRows::of(&arranged);
            for (some, columns) in [(0..outputs, 0..inputs), (outputs / 3..outputs, inputs / 2..inputs)] {
                let mut out = vec![0.0; some.len() * columns.len()];
                if out.is_empty() {
                    continue;
                }
                rows.rows(some.clone()).widen(columns.clone(), &mut out);
                for (row, out) in some.zip(out.chunks_exact(columns.len())) {
                    assert_eq!(out, &plain[row * inputs..][columns.clone()]);
                }
            }
        }
    }
}
