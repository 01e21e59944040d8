//! The left-hand side of a product as the tiles take it.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Kernel, Layout};
#[cfg(target_arch = "x86_64")]
use super::pieces::{self, Values};
use super::{aligned, aligned_start};
use crate::targets::flex::memory::Lent;
use crate::targets::flex::transpose::transpose;

/// Values that several threads lay out together from here on.
const PARALLEL_VALUES: usize = 1 << 17;

/// Rows in panels of as many as a tile takes, laid out; the last panel is filled up with zeros.
pub(super) struct Panels {
    data: Lent,
    width: usize,
    pub(super) rows: usize,
    /// Of a row.
    room: usize,
    layout: Layout,
}

impl Panels {
    /// Some columns of rows of so many.
    pub(super) fn pack(kernel: &Kernel, x: &[f32], stride: usize, columns: Range<usize>) -> Self {
        let (width, layout, rows) = (kernel.width, kernel.layout(), x.len() / stride);
        let room = layout.room(columns.len());
        let mut memory = Lent::default();
        let data = aligned(&mut memory, rows.next_multiple_of(width) * room);
        let pack = |(panel, rows): (&mut [f32], &[f32])| {
            let [count, columns_of] = [rows.len() / stride, columns.len()];
            let values = &rows[columns.start..];
            match layout {
                Layout::Terms => {
                    if count < width {
                        panel.fill(0.0);
                    }
                    transpose(values, stride, [count, columns_of], panel, width);
                }
                #[cfg(target_arch = "x86_64")]
                Layout::Pieces => {
                    let values = Values { values, stride, rows: count, columns: columns_of };
                    if kernel.by_row() { pieces::left(values, panel) } else { pieces::right_transposed(values, panel) }
                }
            }
        };
        if !Self::together(rows, columns.len()) {
            data.chunks_exact_mut(width * room).zip(x.chunks(width * stride)).for_each(pack);
        } else {
            data.par_chunks_exact_mut(width * room).zip(x.par_chunks(width * stride)).for_each(pack);
        }
        Self { data: memory, width, rows, room, layout }
    }

    /// Whether so many columns of so many rows are laid out by several threads together.
    pub(super) fn together(rows: usize, columns: usize) -> bool {
        rows * columns >= PARALLEL_VALUES
    }

    /// How many panels there are.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(self.width)
    }

    /// Some columns of each panel, with the numbers of its rows.
    pub(super) fn parts(&self, columns: Range<usize>) -> impl Iterator<Item = (&[f32], Range<usize>)> {
        let (width, rows) = (self.width, self.rows);
        let room = |columns| width * self.layout.room(columns);
        let part = room(columns.start)..room(columns.end);
        let data = &self.data[aligned_start(&self.data)..];
        data.chunks_exact(width * self.room).take(self.count()).enumerate().map(move |(index, panel)| {
            let rows = index * width..rows.min((index + 1) * width);
            (&panel[part.clone()], rows)
        })
    }
}
