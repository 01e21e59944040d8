//! Packed weights on the CPU, laid out when they are loaded as the products take them, and their values. The products are in `integers`.
//!
//! Sixteen rows lie side by side in a panel: first its lines, each of four integers of every row, all of them unsigned; then the scales of
//! each block, a value for every row, and in the same way the offsets if there are any. A line of four-bit integers holds four of the first
//! half of a block in its low halves, four of the second half in its high ones. Panels come in pairs, the last filled up with zeros.

use std::ops::Range;

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use half::f16;
use rayon::prelude::*;

use super::lines::CacheLine;
use super::weights::Weights;
use super::{lanes, lines};
use crate::packed::{Format, Packed};

/// Weight rows of a panel.
pub(crate) const LANES: usize = 16;
/// Bytes of a line: four integers of each row, or twice four of four bits.
pub(crate) const LINE: usize = 4 * LANES;
const _: () = assert!(LINE == lines::LINE);
/// Panels in a pair: what the widest vectors take at once.
const PAIR: usize = 2;

/// Where what is in a panel.
#[derive(Clone, Copy)]
struct Plan {
    format: Format,
    block: usize,
    /// Blocks of a row.
    blocks: usize,
    offsets: bool,
}

impl Plan {
    /// Bytes of the lines of a block.
    fn block_bytes(self) -> usize {
        self.block * LANES * self.format.bits() / 8
    }

    /// Where the scales begin.
    fn scales(self) -> usize {
        self.blocks * self.block_bytes()
    }

    /// Bytes of the scales, and of the offsets: whole lines, so that a panel with offsets is always the longer one.
    fn halves(self) -> usize {
        (self.blocks * LANES * size_of::<f16>()).next_multiple_of(LINE)
    }

    /// Where the offsets begin.
    fn offsets(self) -> usize {
        self.scales() + self.halves()
    }

    /// Bytes of a panel.
    fn panel(self) -> usize {
        self.offsets() + if self.offsets { self.halves() } else { 0 }
    }

    /// Bytes of a matrix of so many rows.
    fn matrix(self, rows: usize) -> usize {
        rows.div_ceil(PAIR * LANES) * PAIR * self.panel()
    }
}

/// A packed matrix as a tensor of Flex.
pub(crate) fn tensor(packed: Packed) -> FlexTensor {
    let (shape, dtype) = (Shape::from(packed.shape.to_vec()), packed.format.dtype(packed.block));
    let blocks = packed.shape[1] / packed.block;
    let plan = Plan { format: packed.format, block: packed.block, blocks, offsets: packed.offsets.is_some() };
    let bytes = lines::bytes(plan.matrix(packed.shape[0]) / LINE, |memory| {
        if plan.panel() > 0 {
            let panels = memory.par_chunks_exact_mut(plan.panel() / LINE).enumerate();
            panels.for_each(|(panel, lines)| fill(plan, &packed, panel * LANES, lines));
        }
    });
    FlexTensor::new(bytes, Layout::contiguous(shape), dtype)
}

/// Lays out the rows from `first` on in a panel of zeros.
fn fill(plan: Plan, packed: &Packed, first: usize, panel: &mut [CacheLine]) {
    let rows = first.min(packed.shape[0])..packed.shape[0].min(first + LANES);
    let bytes = plan.block * plan.format.bits() / 8;
    // A byte of eight bits is signed there, unsigned here.
    let flipped = if plan.format == Format::Q8 { 0x80 } else { 0 };
    for (lane, row) in rows.enumerate() {
        let blocks = row * plan.blocks..(row + 1) * plan.blocks;
        let integers = packed.integers[blocks.start * bytes..blocks.end * bytes].as_chunks::<4>().0;
        for (line, four) in panel.iter_mut().zip(integers) {
            line.0[4 * lane..4 * lane + 4].copy_from_slice(&four.map(|integer| integer ^ flipped));
        }
        let mut write = |start: usize, values: &[f16]| {
            for (at, value) in values.iter().enumerate() {
                let at = start + (at * LANES + lane) * size_of::<f16>();
                panel[at / LINE].0[at % LINE..at % LINE + size_of::<f16>()].copy_from_slice(&value.to_ne_bytes());
            }
        };
        write(plan.scales(), &packed.scales[blocks.clone()]);
        if let Some(offsets) = &packed.offsets {
            write(plan.offsets(), &offsets[blocks]);
        }
    }
}

/// Rows of packed weights.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows<'a> {
    plan: Plan,
    /// The whole matrix.
    memory: &'a [u8],
    /// The first of these rows in it, and how many they are.
    first: usize,
    outputs: usize,
}

/// The rows of a panel from a block on, and all that follows: what is in the next panel lies [`PackedRows::panel_bytes`] further on.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// Block by block its lines.
    pub(crate) lines: &'a [u8],
    /// A scale for each row of each block.
    pub(crate) scales: &'a [f16],
    /// In the same order what is added to `scale · unsigned integer`, where there is such.
    pub(crate) offsets: Option<&'a [f16]>,
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
        let memory = matrix.bytes();
        let plans = [false, true].map(|offsets| Plan { format, block, blocks: inputs / block, offsets });
        let plan = plans.into_iter().find(|plan| plan.matrix(outputs) == memory.len());
        Self { plan: plan.expect("panels of these rows"), memory, first: 0, outputs }
    }

    pub(crate) fn format(self) -> Format {
        self.plan.format
    }

    /// Bytes from a panel to the next.
    pub(crate) fn panel_bytes(self) -> usize {
        self.plan.panel()
    }

    /// Bytes of a panel's lines, which it begins with.
    pub(crate) fn line_bytes(self) -> usize {
        self.plan.scales()
    }

    /// Bytes of a block's lines in a panel.
    pub(crate) fn block_bytes(self) -> usize {
        self.plan.block_bytes()
    }

    /// The panel in which these rows begin, from this block on.
    #[inline(always)]
    pub(crate) fn panel(self, block: usize) -> Panel<'a> {
        let plan = self.plan;
        let start = self.first / LANES * plan.panel();
        let halves = |part: usize| -> &'a [f16] {
            bytemuck::cast_slice(&self.memory[start + part + block * LANES * size_of::<f16>()..])
        };
        Panel {
            lines: &self.memory[start + block * plan.block_bytes()..],
            scales: halves(plan.scales()),
            offsets: plan.offsets.then(|| halves(plan.offsets())),
        }
    }

    /// The values of the first row from a block on, as many as there is room for.
    #[inline(always)]
    fn widen_row(self, first: usize, to: &mut [f32]) {
        let Plan { format, block, .. } = self.plan;
        let (lane, panel) = (self.first % LANES, self.panel(first));
        let lines = panel.lines.as_chunks::<LINE>().0.chunks_exact(self.plan.block_bytes() / LINE);
        for (at, (to, lines)) in to.chunks_exact_mut(block).zip(lines).enumerate() {
            let scale = panel.scales[at * LANES + lane].to_f32();
            let added = format.added(scale, panel.offsets.map(|offsets| offsets[at * LANES + lane]));
            let value = |integer: u8| (f32::from(integer) - format.zero()) * scale + added;
            let fours = lines.iter().map(|line| &line[4 * lane..4 * lane + 4]);
            match format {
                Format::Q8 => {
                    for (to, four) in to.chunks_exact_mut(4).zip(fours) {
                        to.iter_mut().zip(four).for_each(|(to, integer)| *to = value(*integer));
                    }
                }
                Format::Q4 => {
                    let (low, high) = to.split_at_mut(block / 2);
                    for ((low, high), four) in low.chunks_exact_mut(4).zip(high.chunks_exact_mut(4)).zip(fours) {
                        low.iter_mut().zip(four).for_each(|(to, pair)| *to = value(pair & 15));
                        high.iter_mut().zip(four).for_each(|(to, pair)| *to = value(pair >> 4));
                    }
                }
            }
        }
    }
}

impl<'a> Weights<'a> for PackedRows<'a> {
    fn inputs(self) -> usize {
        self.plan.blocks * self.plan.block
    }

    fn outputs(self) -> usize {
        self.outputs
    }

    fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.outputs);
        Self { first: self.first + range.start, outputs: range.len(), ..self }
    }

    /// Values that share a scale.
    fn block(self) -> usize {
        self.plan.block
    }

    fn widen(self, columns: Range<usize>, to: &mut [f32]) {
        let block = self.plan.block;
        assert!(columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block), "{columns:?}");
        lanes::vectorised(
            #[inline(always)]
            |_| {
                for (row, to) in to.chunks_exact_mut(columns.len()).enumerate() {
                    self.rows(row..row + 1).widen_row(columns.start / block, to);
                }
            },
        );
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::DType;

    use super::*;

    /// Some values, from −1 to 1.
    pub(crate) fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Packed matrices of every kind: blocks of each length that rows are made of, with and without offsets.
    pub(crate) fn matrices(shape: [usize; 2]) -> Vec<Packed> {
        let mut all = Vec::new();
        for format in [Format::Q8, Format::Q4] {
            let longest = Packed::pack(format, shape, &values(2, shape[0] * shape[1])).unwrap();
            for &block in format.blocks().iter().filter(|&&block| block <= longest.block) {
                let (mut packed, parts) = (longest.clone(), longest.block / block);
                let scale =
                    |&scale: &f16| (0..parts).map(move |part| f16::from_f32(scale.to_f32() / (part + 1) as f32));
                (packed.block, packed.scales) = (block, packed.scales.iter().flat_map(scale).collect());
                let offsets = (0..packed.scales.len()).map(|i| f16::from_f32((i % 7) as f32 / 50.0 - 0.1)).collect();
                all.push(Packed { offsets: Some(offsets), ..packed.clone() });
                all.push(packed);
            }
        }
        all
    }

    #[test]
    fn parts_are_widened_to_what_the_whole_is() {
        for packed in matrices([6, 192]) {
            let unpacked = packed.unpacked();
            let tensor = tensor(packed);
            let rows = PackedRows::of(&tensor);
            let mut out = vec![0.0; 2 * 192];
            rows.rows(3..5).widen(0..192, &mut out);
            assert_eq!(out, unpacked[3 * 192..5 * 192]);
            let mut out = vec![0.0; 6 * 64];
            rows.widen(64..128, &mut out);
            for (row, out) in out.chunks_exact(64).enumerate() {
                assert_eq!(out, &unpacked[row * 192 + 64..row * 192 + 128]);
            }
        }
    }

    #[test]
    fn a_tensor_says_its_shape_and_its_dtype() {
        for (format, block) in [(Format::Q8, 64), (Format::Q4, 32)] {
            let packed = Packed::pack(format, [3, 64], &values(1, 192)).unwrap();
            let tensor = tensor(packed);
            assert_eq!(
                (TensorMetadata::shape(&tensor), tensor.dtype()),
                (Shape::from(vec![3, 64]), format.dtype(block))
            );
            assert_ne!(tensor.dtype(), DType::F32);
        }
    }
}
