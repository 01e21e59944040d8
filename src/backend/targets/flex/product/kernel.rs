//! Which tiles a product is made of.

use super::Over;
#[cfg(target_arch = "x86_64")]
use super::pieces;
#[cfg(target_arch = "x86_64")]
use crate::targets::cpu::amx::Tiles;
use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::vector::{Baseline, Vector};
use crate::targets::flex::arranged::LANES;
use crate::targets::flex::dot::InstructionSet;

/// Rows up to which a weight takes longer to come from memory than to be multiplied.
pub(super) const FEW_ROWS: usize = 4;

/// Rows from which on AMX pays.
#[cfg(target_arch = "x86_64")]
const AMX_FROM: usize = 144;

/// The tile of an instruction set.
pub(super) struct Kernel {
    pub(super) set: InstructionSet,
    over: Over,
    /// Sums of a row at most.
    pub(super) height: usize,
    /// Rows.
    pub(super) width: usize,
    /// Terms after which sums are parked, so that a panel and the strips beside it stay in the nearest caches.
    pub(super) depth: usize,
    /// Sums whose weights meet a part of a panel one after another, before the next part takes its place. The second cache holds them
    /// meanwhile.
    pub(super) group: usize,
    /// Rows from which on packing the weight pays.
    pub(super) packed_from: usize,
    /// Sums that a thread takes at a time at least.
    pub(super) share: usize,
    /// Parts of the terms begin at multiples of this.
    pub(super) unit: usize,
}

/// What the operands are laid out as.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layout {
    /// Term by term the values of all rows, or of all sums.
    Terms,
    /// As AMX takes them.
    #[cfg(target_arch = "x86_64")]
    Pieces,
}

impl Layout {
    /// Values of f32 in whose room so many terms of a row, or of a sum, fit.
    pub(super) fn room(self, terms: usize) -> usize {
        match self {
            Self::Terms => terms,
            #[cfg(target_arch = "x86_64")]
            Self::Pieces => pieces::room(terms),
        }
    }
}

/// Where the sums of a group are that belong to a panel.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// From a strip's sums to the next one's.
    pub(super) step: usize,
    /// From a row of the tile to the next: a sum's for all rows, or [a row's](Kernel::by_row) of all sums.
    pub(super) pitch: usize,
}

impl Kernel {
    /// As many sums as fit the registers beside the operands. For a few rows laying out a weight as AMX takes it costs more than it saves.
    pub(super) fn of(set: InstructionSet, over: Over, rows: usize, arranged: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        let set = if rows < AMX_FROM { set.min(InstructionSet::Avx512) } else { set };
        let narrow =
            Self { set, over, height: 6, width: 16, depth: 512, group: 96, packed_from: 192, share: 96, unit: LINE };
        if arranged && over == Over::Inputs && rows <= FEW_ROWS {
            return Self::of_few_rows(set, rows, narrow);
        }
        match set {
            // Sums are moved to memory and back at a cost of two blocks. What is laid out is of use to one thread as to the other, so shares
            // may be short.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => {
                let side = pieces::SIDE;
                Self {
                    height: side,
                    width: side,
                    depth: 1024,
                    group: 4 * side,
                    packed_from: 0,
                    share: side,
                    unit: side,
                    ..narrow
                }
            }
            // 24 sums each, of which those of three vectors need the fewer instructions: 35 against 38 for a term, which is what counts where
            // another guest runs on the second thread of the core. A single vector that is left over would cost as much as two.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => {
                let pairs = over == Over::Inputs && !arranged && matches!(rows.div_ceil(LINE), 1 | 2 | 4);
                let (height, width) = if pairs { (12, 2 * LINE) } else { (8, 3 * LINE) };
                // Of `x · W` a share is worth the copying of its columns.
                let share = if over == Over::Inputs { 48 } else { 96 };
                Self { height, width, depth: 1024, group: 144, packed_from: 513, share, ..narrow }
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => narrow,
            InstructionSet::Portable if Baseline::REGISTERS == 32 => narrow,
            InstructionSet::Portable => Self { height: 2, group: 32, share: 32, ..narrow },
        }
    }

    /// For a panel of so many lanes, in terms whatever the number of rows.
    pub(super) fn of_small(set: InstructionSet, lanes: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        let set = set.min(InstructionSet::Avx512);
        Self::of(set, Over::Inputs, lanes, false)
    }

    /// For a weight that comes from memory as it is multiplied: whole panels, and two at once where there is room for their sums, which come
    /// faster than one after the other. Shares are short, since a thread that waits for another reads nothing.
    fn of_few_rows(set: InstructionSet, rows: usize, narrow: Self) -> Self {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = rows;
        let (height, panels, depth) = match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx | InstructionSet::Avx512 => (4, 2, 1024),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 if rows == 1 => (1, 2, narrow.depth),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => (2, 1, narrow.depth),
            InstructionSet::Portable if Baseline::REGISTERS == 32 => (2, 1, narrow.depth),
            InstructionSet::Portable => (1, 1, narrow.depth),
        };
        Self { height, width: panels * LANES, depth, group: panels * LANES, share: LANES, ..narrow }
    }

    /// What the operands are laid out as.
    pub(super) fn layout(&self) -> Layout {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => Layout::Pieces,
            _ => Layout::Terms,
        }
    }

    /// Whether tiles leave the sums of a row one after another, which makes the rows the left operand of AMX.
    pub(super) fn by_row(&self) -> bool {
        self.layout() != Layout::Terms && self.over == Over::Outputs
    }

    /// Where the sums of a group of so many are.
    pub(super) fn place(&self, count: usize) -> Place {
        if self.by_row() {
            Place { step: self.height, pitch: count.next_multiple_of(self.height) }
        } else {
            Place { step: self.height * self.width, pitch: self.width }
        }
    }

    /// Makes this thread ready for tiles, as long as what is returned is kept.
    pub(super) fn begin(&self) -> impl Sized {
        // SAFETY: AMX was found; a share of a product is the only user of a thread's registers.
        #[cfg(target_arch = "x86_64")]
        return (self.layout() == Layout::Pieces).then(|| unsafe { Tiles::begin() });
    }
}
