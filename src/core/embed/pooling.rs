//! From the hidden states of tokens to one vector for each sequence. What a checkpoint asks for is read in `config.rs`.

use burn::tensor::{Tensor, TensorData};
use firebrick_backend::KernelBackend;

use crate::sequence::{Segment, Segments};

/// Rows pooled by one matrix product: its matrix, which is mostly zeros, stays small beside the hidden states.
const BLOCK_ROWS: usize = 1024;

/// A way of pooling, under the name that sentence-transformers has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's state.
    Cls,
    /// The largest value of each feature.
    Max,
    /// The mean of the tokens.
    Mean,
    /// Their sum over the root of their number.
    MeanSqrtLength,
    /// Their mean, each weighted with its position from 1.
    WeightedMean,
    /// The last token's state.
    LastToken,
}

impl Pooling {
    /// Every way, in the order in which sentence-transformers concatenates several that are switched on.
    pub const ALL: [Self; 6] =
        [Self::Cls, Self::Max, Self::Mean, Self::MeanSqrtLength, Self::WeightedMean, Self::LastToken];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::MeanSqrtLength => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
            Self::LastToken => "lasttoken",
        }
    }

    /// `[tokens, hidden]` → `[sequences, hidden]`.
    ///
    /// # Panics
    /// If there is no sequence, or an empty one.
    pub fn pool<B: KernelBackend>(self, hidden: Tensor<B, 2>, segments: &Segments) -> Tensor<B, 2> {
        assert!(segments.iter().len() > 0, "pooling of nothing");
        assert!(segments.iter().all(|segment| segment.len > 0), "pooling of an empty sequence");
        match self {
            Self::Cls => {
                let first: Vec<usize> = segments.iter().map(|segment| segment.start).collect();
                let [states] = segments.clone().wanting(first).wanted_of([hidden]);
                states
            }
            Self::LastToken => {
                let [states] = segments.clone().wanting_last().wanted_of([hidden]);
                states
            }
            Self::Max => {
                let largest = |segment: &Segment| hidden.clone().narrow(0, segment.start, segment.len).max_dim(0);
                Tensor::cat(segments.iter().map(largest).collect(), 0)
            }
            Self::Mean => weighted(hidden, segments, |_, len| 1.0 / len as f64),
            Self::MeanSqrtLength => weighted(hidden, segments, |_, len| 1.0 / (len as f64).sqrt()),
            Self::WeightedMean => {
                weighted(hidden, segments, |at, len| 2.0 * (at + 1) as f64 / (len as f64 * (len + 1) as f64))
            }
        }
    }
}

/// Weighted sums of each sequence's rows; `weight` is asked for the place in the sequence and its length. As a matrix product, block by
/// block of sequences: one op for many of them on any device, and its gradient is one too.
fn weighted<B: KernelBackend>(
    hidden: Tensor<B, 2>,
    segments: &Segments,
    weight: impl Fn(usize, usize) -> f64,
) -> Tensor<B, 2> {
    let segments: Vec<Segment> = segments.iter().copied().collect();
    let mut sums = Vec::new();
    let mut rest = &segments[..];
    while let Some(first) = rest.first() {
        let fits = |segment: &&Segment| segment.start + segment.len - first.start <= BLOCK_ROWS;
        let count = rest.iter().take_while(fits).count().max(1);
        let (block, later) = rest.split_at(count);
        rest = later;
        let rows: usize = block.iter().map(|segment| segment.len).sum();
        let mut weights = vec![0.0; count * rows];
        for (index, segment) in block.iter().enumerate() {
            let start = index * rows + segment.start - first.start;
            let places = weights[start..start + segment.len].iter_mut().enumerate();
            places.for_each(|(at, value)| *value = weight(at, segment.len));
        }
        let data = TensorData::new(weights, [count, rows]).convert_dtype(hidden.dtype());
        let weights = Tensor::<B, 2>::from_data(data, (&hidden.device(), hidden.dtype()));
        sums.push(weights.matmul(hidden.clone().narrow(0, first.start, rows)));
    }
    Tensor::cat(sums, 0)
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn pooled(pooling: Pooling, lengths: &[usize]) -> Vec<f64> {
        let rows: usize = lengths.iter().sum();
        let hidden: Vec<f32> = (0..rows * 2).map(|i| ((i * 7) % 5) as f32 - 2.0).collect();
        let hidden = Tensor::<Flex, 2>::from_data(TensorData::new(hidden, [rows, 2]), &Default::default());
        pooling.pool(hidden, &Segments::whole(lengths.iter().copied())).into_data().iter::<f64>().collect()
    }

    fn near(actual: Vec<f64>, expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-6), "{actual:?} {expected:?}");
    }

    #[test]
    fn each_way_of_pooling_sees_its_own_sequence_only() {
        // Rows (-2, 0), (2, -1), (1, -2) and (0, 2).
        near(pooled(Pooling::Mean, &[3, 1]), &[1.0 / 3.0, -1.0, 0.0, 2.0]);
        near(pooled(Pooling::MeanSqrtLength, &[3, 1]), &[1.0 / 3f64.sqrt(), -3.0 / 3f64.sqrt(), 0.0, 2.0]);
        near(pooled(Pooling::WeightedMean, &[3, 1]), &[5.0 / 6.0, -8.0 / 6.0, 0.0, 2.0]);
        near(pooled(Pooling::Cls, &[3, 1]), &[-2.0, 0.0, 0.0, 2.0]);
        near(pooled(Pooling::LastToken, &[3, 1]), &[1.0, -2.0, 0.0, 2.0]);
        near(pooled(Pooling::Max, &[3, 1]), &[2.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn many_sequences_are_pooled_in_blocks() {
        let lengths: Vec<usize> = (0..400).map(|i| 1 + i % 13).chain([3 * BLOCK_ROWS, 2]).collect();
        let together = pooled(Pooling::Mean, &lengths);
        let rows: usize = lengths.iter().sum();
        let hidden: Vec<f64> = (0..rows * 2).map(|i| ((i * 7) % 5) as f64 - 2.0).collect();
        let mut start = 0;
        for (len, mean) in lengths.iter().zip(together.chunks(2)) {
            let rows = hidden[2 * start..2 * (start + len)].chunks(2);
            let expected = rows.map(|row| row[0]).sum::<f64>() / *len as f64;
            assert!((mean[0] - expected).abs() < 1e-5, "{} {expected}", mean[0]);
            start += len;
        }
    }
}
