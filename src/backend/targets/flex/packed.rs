//! Packed weights on the CPU: rows of blocks in the memory of a tensor, and their values. Products with them are in `integers`.

use std::ops::Range;

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use burn_std::Bytes;
use half::f16;

use super::lanes;
use super::weights::Weights;
use crate::packed::{Format, Packed, PackedView};

/// Rows of packed weights.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows<'a> {
    view: PackedView<'a>,
    inputs: usize,
    outputs: usize,
}

/// A packed matrix as a tensor of Flex: one buffer of integers, scales and offsets.
pub(crate) fn tensor(packed: Packed) -> FlexTensor {
    let (shape, dtype) = (Shape::from(packed.shape.to_vec()), packed.format.dtype(packed.block));
    FlexTensor::new(Bytes::from_elems(packed.into_bytes()), Layout::contiguous(shape), dtype)
}

impl<'a> PackedRows<'a> {
    /// The rows of a tensor made by [`tensor`].
    ///
    /// # Panics
    /// If it is a view of another: packed weights are whole.
    pub(crate) fn of(matrix: &'a FlexTensor) -> Self {
        let (format, block) = Format::of(matrix.dtype()).expect("a packed dtype");
        let shape = TensorMetadata::shape(matrix);
        let (outputs, inputs) = (shape[0], shape[1]);
        assert!(matrix.layout().is_contiguous() && matrix.layout().start_offset() == 0, "packed weights are whole");
        let blocks = outputs * inputs / block;
        let (integers, halves) = matrix.bytes().split_at(outputs * inputs * format.bits() / 8);
        let halves: &[f16] = bytemuck::cast_slice(halves);
        let (scales, offsets) = halves.split_at(blocks);
        assert!(offsets.is_empty() || offsets.len() == blocks);
        let offsets = Some(offsets).filter(|offsets| !offsets.is_empty());
        Self { view: PackedView { format, block, integers, scales, offsets }, inputs, outputs }
    }

    /// All blocks, row by row.
    pub(crate) fn view(self) -> PackedView<'a> {
        self.view
    }

    /// Some blocks of the first row.
    pub(crate) fn part(self, blocks: Range<usize>) -> PackedView<'a> {
        part(self.view, blocks)
    }

    /// Blocks of a row.
    pub(crate) fn blocks(self) -> usize {
        self.inputs / self.view.block
    }
}

impl<'a> Weights<'a> for PackedRows<'a> {
    fn inputs(self) -> usize {
        self.inputs
    }

    fn outputs(self) -> usize {
        self.outputs
    }

    fn rows(self, range: Range<usize>) -> Self {
        let blocks = range.start * self.blocks()..range.end * self.blocks();
        Self { view: part(self.view, blocks), inputs: self.inputs, outputs: range.len() }
    }

    fn as_f32(self) -> Option<&'a [f32]> {
        None
    }

    fn widen(self, columns: Range<usize>, to: &mut [f32]) {
        if columns.len() == self.inputs {
            return unpack(self.view, to);
        }
        let block = self.view.block;
        assert!(columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block), "{columns:?}");
        for (row, to) in to.chunks_exact_mut(columns.len()).enumerate() {
            unpack(self.rows(row..row + 1).part(columns.start / block..columns.end / block), to);
        }
    }
}

/// These blocks alone.
fn part(view: PackedView<'_>, blocks: Range<usize>) -> PackedView<'_> {
    let bytes = view.block_bytes();
    PackedView {
        integers: &view.integers[blocks.start * bytes..blocks.end * bytes],
        scales: &view.scales[blocks.clone()],
        offsets: view.offsets.map(|offsets| &offsets[blocks]),
        ..view
    }
}

fn unpack(view: PackedView, to: &mut [f32]) {
    lanes::vectorised(
        #[inline(always)]
        |_| view.unpack_into(to),
    );
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::DType;

    use super::*;

    /// Some values, from −1 to 1.
    pub(crate) fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Packed matrices of every kind: blocks of 32 and 16, with and without offsets.
    pub(crate) fn matrices(shape: [usize; 2]) -> Vec<Packed> {
        let mut all = Vec::new();
        for format in [Format::Q8, Format::Q4] {
            let packed = Packed::pack(format, shape, &values(2, shape[0] * shape[1])).unwrap();
            let halves = packed.scales.iter().flat_map(|&scale| [scale, f16::from_f32(0.5 * scale.to_f32())]);
            let halves = Packed { block: 16, scales: halves.collect(), ..packed.clone() };
            for packed in [packed, halves] {
                let offsets = (0..packed.scales.len()).map(|i| f16::from_f32((i % 7) as f32 / 50.0 - 0.1)).collect();
                all.push(Packed { offsets: Some(offsets), ..packed.clone() });
                all.push(packed);
            }
        }
        all
    }

    #[test]
    fn parts_are_widened_to_what_the_whole_is() {
        for packed in matrices([6, 160]) {
            let unpacked = packed.unpacked();
            let tensor = tensor(packed);
            let rows = PackedRows::of(&tensor);
            let mut out = vec![0.0; 2 * 160];
            rows.rows(3..5).widen(0..160, &mut out);
            assert_eq!(out, unpacked[3 * 160..5 * 160]);
            let mut out = vec![0.0; 6 * 64];
            rows.widen(32..96, &mut out);
            for (row, out) in out.chunks_exact(64).enumerate() {
                assert_eq!(out, &unpacked[row * 160 + 32..row * 160 + 96]);
            }
        }
    }

    #[test]
    fn a_tensor_says_its_shape_and_its_dtype() {
        let packed = Packed::pack(Format::Q4, [3, 64], &values(1, 192)).unwrap();
        let tensor = tensor(packed);
        assert_eq!((TensorMetadata::shape(&tensor), tensor.dtype()), (Shape::from(vec![3, 64]), Format::Q4.dtype(32)));
        assert_ne!(tensor.dtype(), DType::F32);
    }
}
