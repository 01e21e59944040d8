//! Examples laid end to end, the rows whose next token counts, and the order in which examples come.

use std::ops::Range;

use firebrick_backend::KernelBackend;
use firebrick_backend::ops::cross_entropy::Targets;

use super::data::{Example, epoch_order};
use crate::model::CausalLm;
use crate::sequence::{Segments, Sequences};

/// Some examples as one forward pass.
pub struct Batch<B: KernelBackend> {
    /// Of which the rows that predict a weighted token are wanted.
    pub(crate) tokens: Sequences<B>,
    /// What those predict.
    pub(crate) targets: Targets,
    /// How many of them belong to each example.
    counts: Vec<usize>,
}

impl<B: KernelBackend> Batch<B> {
    /// The last token of an example predicts nothing and is left out of the pass.
    pub(crate) fn new(examples: &[&Example], device: &B::Device) -> Self {
        let (mut ids, mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut counts = Vec::new();
        for example in examples {
            let before = rows.len();
            for (next, &weight) in example.weights.iter().enumerate().skip(1) {
                if weight != 0.0 {
                    rows.push(ids.len() + next - 1);
                    targets.push(example.tokens[next]);
                    weights.push(weight);
                }
            }
            counts.push(rows.len() - before);
            ids.extend_from_slice(&example.tokens[..example.tokens.len() - 1]);
        }
        let segments = Segments::whole(examples.iter().map(|example| example.tokens.len() - 1)).wanting(rows);
        let tokens = Sequences::new(&ids, segments, device);
        Self { tokens, targets: Targets::new(targets, weights), counts }
    }

    /// Weighted sum of the losses and sum of the weights of all examples: the head is multiplied by once.
    pub(crate) fn loss(&self, model: &dyn CausalLm<B>) -> (f64, f64) {
        if self.targets.ids.is_empty() {
            return (0.0, 0.0);
        }
        let loss = model.loss(model.hidden(&self.tokens, None), &self.targets).into_data();
        let weight = self.targets.weights.iter().map(|&weight| f64::from(weight)).sum();
        (loss.iter::<f64>().next().unwrap_or(f64::NAN), weight)
    }

    /// Weighted sum of the losses and sum of the weights of each example.
    pub(crate) fn losses(&self, model: &dyn CausalLm<B>) -> Vec<(f64, f64)> {
        if self.targets.ids.is_empty() {
            return vec![(0.0, 0.0); self.counts.len()];
        }
        let hidden = model.hidden(&self.tokens, None);
        let mut start = 0;
        let mut losses = Vec::new();
        for &count in &self.counts {
            let range = start..start + count;
            start += count;
            if count == 0 {
                losses.push((0.0, 0.0));
                continue;
            }
            let (ids, weights) = (&self.targets.ids[range.clone()], &self.targets.weights[range.clone()]);
            let loss = model.loss(hidden.clone().narrow(0, range.start, count), &Targets::new(ids, weights));
            let loss = loss.into_data().iter::<f64>().next().unwrap_or(f64::NAN);
            losses.push((loss, weights.iter().map(|&weight| f64::from(weight)).sum()));
        }
        losses
    }
}

/// Examples in training order: epoch after epoch, each shuffled by the seed and parted into bins. It depends on nothing else, so that a
/// run can be taken up where it ended.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Tokens of each example.
    lengths: Vec<usize>,
    pack: Option<usize>,
    seed: u64,
    epoch: usize,
    shuffled: Vec<usize>,
    /// Where each bin ends among `shuffled`.
    ends: Vec<usize>,
    /// The next bin.
    at: usize,
}

impl Order {
    /// Of examples with so many tokens each, of which a bin holds at most `pack`, or else one example; from where `taken` bins were taken
    /// before.
    pub(crate) fn new(lengths: Vec<usize>, pack: Option<usize>, seed: u64, taken: usize) -> Self {
        let mut order = Self { lengths, pack, seed, epoch: 0, shuffled: Vec::new(), ends: Vec::new(), at: taken };
        (order.shuffled, order.ends) = order.of_epoch(0);
        // Epochs differ in their bins, where rows are packed.
        while order.at > order.ends.len() {
            order.at -= order.ends.len();
            order.epoch += 1;
            (order.shuffled, order.ends) = order.of_epoch(order.epoch);
        }
        order
    }

    fn of_epoch(&self, epoch: usize) -> (Vec<usize>, Vec<usize>) {
        let shuffled = epoch_order(self.lengths.len(), self.seed, epoch);
        let ends = bin_ends(shuffled.iter().map(|&index| self.lengths[index]), self.pack);
        (shuffled, ends)
    }

    /// Bins of the first so many epochs.
    pub(crate) fn bins(&self, epochs: usize) -> usize {
        match self.pack {
            None => epochs * self.lengths.len(),
            Some(_) => (0..epochs).map(|epoch| self.of_epoch(epoch).1.len()).sum(),
        }
    }

    /// The examples' indices in the next bins.
    pub(crate) fn take(&mut self, bins: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        for _ in 0..bins {
            if self.at == self.ends.len() {
                self.epoch += 1;
                (self.shuffled, self.ends) = self.of_epoch(self.epoch);
                self.at = 0;
            }
            let start = self.at.checked_sub(1).map_or(0, |before| self.ends[before]);
            taken.extend_from_slice(&self.shuffled[start..self.ends[self.at]]);
            self.at += 1;
        }
        taken
    }
}

/// Passes over so many bins each, of which these are the ends, of `least` examples or more.
pub(crate) fn passes(bin_ends: &[usize], bins: usize, least: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    let ends = bin_ends.chunks(bins).filter_map(|bins| bins.last());
    let mut passes: Vec<Range<usize>> = ends.map(|&end| std::mem::replace(&mut start, end)..end).collect();
    // Too few to be told from each other: they join those before them.
    if let [.., before, last] = &mut passes[..]
        && last.len() < least
    {
        before.end = last.end;
        passes.pop();
    }
    passes
}

/// Where bins of neighbours end: each takes examples while they fit `pack` tokens, and one at least. Nothing is padded, so that a bin that is
/// not quite full costs nothing, and the order stays what it was.
pub(crate) fn bin_ends(lengths: impl ExactSizeIterator<Item = usize>, pack: Option<usize>) -> Vec<usize> {
    let Some(pack) = pack else { return (1..=lengths.len()).collect() };
    let (mut ends, mut filled) = (Vec::new(), 0);
    let count = lengths.len();
    for (index, length) in lengths.enumerate() {
        if index > 0 && filled + length > pack {
            ends.push(index);
            filled = 0;
        }
        filled += length;
    }
    ends.extend((count > 0).then_some(count));
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_neighbours_up_to_the_limit() {
        let ends = |lengths: &[usize], pack| bin_ends(lengths.iter().copied(), pack);
        assert_eq!(ends(&[3, 4, 3, 9, 1, 1], Some(8)), [2, 3, 4, 6]);
        assert_eq!(ends(&[3, 4], None), [1, 2]);
        assert_eq!(ends(&[9], Some(8)), [1], "a longer one is alone");
        assert!(ends(&[], Some(8)).is_empty());
    }

    #[test]
    fn packing_leaves_the_order_as_it_is() {
        let lengths: Vec<usize> = (0..40).map(|index| 1 + index * 7 % 11).collect();
        let all = |pack: Option<usize>| {
            let mut order = Order::new(lengths.clone(), pack, 5, 0);
            let bins = order.bins(3);
            let mut taken = Vec::new();
            for _ in 0..bins {
                let bin = order.take(1);
                assert!(bin.iter().map(|&index| lengths[index]).sum::<usize>() <= pack.unwrap_or(11));
                taken.extend(bin);
            }
            (taken, bins)
        };
        let (plain, packed) = (all(None), all(Some(32)));
        assert_eq!(plain.0, packed.0);
        assert_eq!(plain.1, 120);
        assert!(packed.1 < 40, "{} bins", packed.1);
        let mut twice = Order::new(lengths.clone(), Some(32), 5, 0);
        assert_eq!([twice.take(3), twice.take(packed.1 - 3)].concat(), packed.0, "in any number of portions");
        for pack in [None, Some(32)] {
            let from_the_start = |taken| {
                let mut order = Order::new(lengths.clone(), pack, 5, 0);
                order.take(taken);
                order.take(7)
            };
            for taken in 0..130 {
                let mut order = Order::new(lengths.clone(), pack, 5, taken);
                assert_eq!(order.take(7), from_the_start(taken), "taken up after {taken} bins, {pack:?}");
            }
        }
    }
}
