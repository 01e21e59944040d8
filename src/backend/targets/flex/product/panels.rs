//! The left-hand side of a product as the tiles take it.

use std::ops::Range;

use rayon::prelude::*;

use super::PARALLEL_PRODUCTS;
use crate::targets::flex::memory::{self, Lent};
use crate::targets::flex::transpose::transpose;

/// Rows in panels of `width`, column by column; the last panel is filled up with zeros.
pub(super) struct Panels {
    data: Lent,
    width: usize,
    pub(super) rows: usize,
    columns: usize,
}

impl Panels {
    /// Some columns of rows of so many.
    pub(super) fn pack(x: &[f32], stride: usize, columns: Range<usize>, width: usize) -> Self {
        let (rows, panel) = (x.len() / stride, width * columns.len());
        let mut data = memory::scratch(rows.next_multiple_of(width) * columns.len());
        if !rows.is_multiple_of(width) {
            let last = data.len() - panel;
            data[last..].fill(0.0);
        }
        let pack = |(panel, rows): (&mut [f32], &[f32])| {
            let shape = [rows.len() / stride, columns.len()];
            transpose(&rows[columns.start..], stride, shape, panel, width);
        };
        if data.len() < PARALLEL_PRODUCTS {
            data.chunks_exact_mut(panel).zip(x.chunks(width * stride)).for_each(pack);
        } else {
            data.par_chunks_exact_mut(panel).zip(x.par_chunks(width * stride)).for_each(pack);
        }
        Self { data, width, rows, columns: columns.len() }
    }

    /// How many panels there are.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(self.width)
    }

    /// Some columns of each panel, with the numbers of its rows.
    pub(super) fn parts(&self, columns: Range<usize>) -> impl Iterator<Item = (&[f32], Range<usize>)> {
        let (width, rows) = (self.width, self.rows);
        self.data.chunks_exact(width * self.columns).enumerate().map(move |(index, panel)| {
            let rows = index * width..rows.min((index + 1) * width);
            (&panel[columns.start * width..columns.end * width], rows)
        })
    }
}
