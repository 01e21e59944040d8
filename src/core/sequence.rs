//! Several sequences laid end to end. Batching, packing for training, chunked prefill and a decode step are all this one value, kept on
//! the host. Padding does not exist.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use firebrick_backend::ops::attention::Span;

/// Where one sequence's new tokens stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row among the tokens laid end to end.
    pub start: usize,
    /// How many rows.
    pub len: usize,
    /// Position of the first of them in its sequence: how many tokens the cache already holds.
    pub position: usize,
    /// The cache slot of the sequence.
    pub slot: usize,
}

/// The segments of a forward pass, covering its rows without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    all: Arc<[Segment]>,
    wanted: Option<Arc<[usize]>>,
}

impl Segments {
    /// Whole sequences from position 0, one after the other, in slots of their own.
    pub fn whole(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self::continuing(lengths.into_iter().map(|len| (len, 0)))
    }

    /// New tokens of sequences that already have some: `(new tokens, position of the first)`, slot by slot.
    pub fn continuing(sequences: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut start = 0;
        let segment = |(slot, (len, position))| {
            let segment = Segment { start, len, position, slot };
            start += len;
            segment
        };
        Self { all: sequences.into_iter().enumerate().map(segment).collect(), wanted: None }
    }

    /// The same, of which a decoder gives the hidden states of these rows alone, in this order: what nobody reads is left out of its last
    /// layer.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn wanting(self, rows: impl Into<Arc<[usize]>>) -> Self {
        let (rows, count) = (rows.into(), self.rows());
        if let Some(row) = rows.iter().find(|&&row| row >= count) {
            panic!("row {row} of {count} is wanted");
        }
        let all = rows.iter().copied().eq(0..count);
        Self { wanted: (!all).then_some(rows), ..self }
    }

    /// The same, of which the hidden state of each segment's last token is wanted.
    pub fn wanting_last(self) -> Self {
        let rows = self.last_rows();
        self.wanting(rows)
    }

    /// The rows that are wanted, where those are not all of them.
    pub fn wanted(&self) -> Option<&[usize]> {
        self.wanted.as_deref()
    }

    /// The wanted ones of the rows of each of these tensors, `[rows, width]` → `[wanted, width]`.
    pub fn wanted_of<B: Backend, const N: usize>(&self, tensors: [Tensor<B, 2>; N]) -> [Tensor<B, 2>; N] {
        match self.wanted() {
            None => tensors,
            // No copy, and nothing to move to the device.
            Some(&[row]) => tensors.map(|x| x.narrow(0, row, 1)),
            Some(rows) => {
                let Some(device) = tensors.first().map(Tensor::device) else { return tensors };
                let ids: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
                let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [rows.len()]), &device);
                tensors.map(|x| x.select(0, ids.clone()))
            }
        }
    }

    /// The segments in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Segment> {
        self.all.iter()
    }

    /// Rows of all segments together.
    pub fn rows(&self) -> usize {
        self.all.last().map_or(0, |last| last.start + last.len)
    }

    /// Row of the last token of each segment.
    pub fn last_rows(&self) -> Vec<usize> {
        self.iter().map(|segment| segment.start + segment.len - 1).collect()
    }

    /// The position of each row in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.iter().flat_map(|segment| segment.position..segment.position + segment.len)
    }

    /// One more than the highest position.
    pub fn context(&self) -> usize {
        self.iter().map(|segment| segment.position + segment.len).max().unwrap_or(0)
    }

    /// Attention spans where the keys are the rows themselves: training, scoring, encoding.
    ///
    /// # Panics
    /// If a segment does not start at position 0, since its earlier keys are nowhere.
    pub fn spans(&self) -> Arc<[Span]> {
        let span = |segment: &Segment| {
            assert_eq!(segment.position, 0, "a segment that continues needs a cache");
            let Segment { start, len, .. } = *segment;
            Span { query_start: start, query_len: len, key_start: start, key_len: len }
        };
        self.iter().map(span).collect()
    }

    /// Attention spans where the keys lie in a cache of `capacity` rows a slot.
    pub fn cached_spans(&self, capacity: usize) -> Arc<[Span]> {
        let span = |segment: &Segment| Span {
            query_start: segment.start,
            query_len: segment.len,
            key_start: segment.slot * capacity,
            key_len: segment.position + segment.len,
        };
        self.iter().map(span).collect()
    }
}

/// Token ids laid end to end, and where each sequence starts.
#[derive(Clone, Debug)]
pub struct Sequences<B: Backend> {
    /// Token ids, `[tokens]`.
    pub ids: Tensor<B, 1, Int>,
    /// Where they belong.
    pub segments: Segments,
}

impl<B: Backend> Sequences<B> {
    /// Ids for these segments, moved to `device`.
    ///
    /// # Panics
    /// If there are not as many ids as rows.
    pub fn new(ids: &[u32], segments: Segments, device: &B::Device) -> Self {
        assert_eq!(ids.len(), segments.rows(), "{} ids for {} rows", ids.len(), segments.rows());
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let rows = ids.len();
        Self { ids: Tensor::from_data(TensorData::new(ids, [rows]), device), segments }
    }

    /// Whole sequences from position 0.
    pub fn whole<T: AsRef<[u32]>>(sequences: &[T], device: &B::Device) -> Self {
        let ids: Vec<u32> = sequences.iter().flat_map(|ids| ids.as_ref().iter().copied()).collect();
        Self::new(&ids, Segments::whole(sequences.iter().map(|ids| ids.as_ref().len())), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_rows_and_know_their_positions() {
        let segments = Segments::continuing([(2, 5), (3, 0)]);
        assert_eq!(segments.rows(), 5);
        assert_eq!(segments.positions().collect::<Vec<_>>(), [5, 6, 0, 1, 2]);
        assert_eq!(segments.last_rows(), [1, 4]);
        assert_eq!(segments.context(), 7);
        let spans = segments.cached_spans(8);
        assert_eq!(spans[0], Span { query_start: 0, query_len: 2, key_start: 0, key_len: 7 });
        assert_eq!(spans[1], Span { query_start: 2, query_len: 3, key_start: 8, key_len: 3 });
    }

    #[test]
    fn wanting_every_row_is_wanting_none_in_particular() {
        let segments = || Segments::whole([2, 1]);
        assert_eq!(segments().wanting([0, 1, 2]), segments());
        assert_eq!(segments().wanting([1, 0, 2]).wanted(), Some(&[1, 0, 2][..]));
        assert_eq!(segments().wanting_last().wanted(), Some(&[1, 2][..]));
        assert_eq!(Segments::whole([1]).wanting_last().wanted(), None);
    }

    #[test]
    #[should_panic(expected = "row 3 of 3 is wanted")]
    fn a_row_that_is_not_there_is_not_wanted() {
        Segments::whole([2, 1]).wanting([3]);
    }

    #[test]
    #[should_panic(expected = "needs a cache")]
    fn a_continuing_segment_without_a_cache_is_refused() {
        Segments::continuing([(1, 3)]).spans();
    }
}
