//! The tokens that the filters may keep, found without a look at most of the vocabulary: the largest logit of each block says whether
//! there is one among its own.

use super::{Sampling, softmax};
use crate::error::Result;

/// Logits of a block: as many blocks as there are tokens to keep, or more, with few tokens in each.
const BLOCK: usize = 64;

/// The largest logits of a row, and the tokens that may be chosen. Kept between rows to reuse the memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    /// Of every block of the row.
    peaks: Vec<f32>,
    ranked: Vec<f32>,
    logits: Vec<f32>,
    ids: Vec<u32>,
}

/// Tokens in the order of their ids.
#[derive(Clone, Copy)]
pub(super) struct Chosen<'a> {
    pub(super) logits: &'a [f32],
    /// `None` where a token's place is its id.
    ids: Option<&'a [u32]>,
}

impl<'a> Chosen<'a> {
    /// Every token.
    pub(super) fn all(logits: &'a [f32]) -> Self {
        Self { logits, ids: None }
    }

    /// The token at a place.
    pub(super) fn id(self, place: usize) -> usize {
        self.ids.map_or(place, |ids| ids[place] as usize)
    }
}

impl Candidates {
    /// Looks at a row, and returns its largest logit.
    ///
    /// Errors: those of [`softmax::peak`].
    pub(super) fn look(&mut self, logits: &[f32]) -> Result<f32> {
        self.peaks.clear();
        self.peaks.extend(logits.chunks(BLOCK).map(softmax::largest));
        softmax::peak(logits, &self.peaks)
    }

    /// The first token with the largest logit of the row that was looked at.
    pub(super) fn first_of(&self, logits: &[f32], peak: f32) -> usize {
        let block = self.peaks.iter().position(|&largest| largest == peak).unwrap_or_default() * BLOCK;
        block + logits[block..].iter().position(|&x| x == peak).unwrap_or_default()
    }

    /// Every token of the row that was looked at which top-k, top-p or min-p can keep, and some that they cannot; with the mass of the
    /// whole row where top-p needs it and these tokens do not tell it.
    pub(super) fn of<'a>(&'a mut self, logits: &'a [f32], peak: f32, sampling: &Sampling) -> (Chosen<'a>, Option<f64>) {
        let temperature = sampling.temperature;
        // What rounding may move, of a weight and of the logits themselves.
        let below_peak = |natural: f64| {
            (f64::from(peak) + f64::from(temperature) * (natural - 1e-3) - 1e-6 * f64::from(peak.abs())) as f32
        };
        let floor = |min_p: f32| below_peak(f64::from(min_p).ln());
        let (mut least, mut mass) = (f32::NEG_INFINITY, None);
        if let Some(k) = sampling.top_k {
            // As many blocks reach this, so as many tokens do.
            if k <= self.peaks.len() {
                self.ranked.clone_from(&self.peaks);
                least = *self.ranked.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
            }
        } else if let Some(top_p) = sampling.top_p.filter(|&p| p < 1.0) {
            let all = softmax::mass(logits, peak, temperature);
            // All tokens below weigh less together than what top-p leaves out.
            least = below_peak(((1.0 - f64::from(top_p)) * 0.5 * all / logits.len() as f64).ln());
            least = least.max(sampling.min_p.map_or(least, floor));
            mass = Some(all);
        } else if let Some(min_p) = sampling.min_p {
            least = floor(min_p);
        }
        if least == f32::NEG_INFINITY {
            return (Chosen::all(logits), mass);
        }
        self.logits.clear();
        self.ids.clear();
        for (block, _) in self.peaks.iter().enumerate().filter(|(_, largest)| **largest >= least) {
            let ids = block * BLOCK..logits.len().min((block + 1) * BLOCK);
            for id in ids.filter(|&id| logits[id] >= least) {
                self.logits.push(logits[id]);
                self.ids.push(id as u32);
            }
        }
        (Chosen { logits: &self.logits, ids: Some(&self.ids) }, mass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_left_of_a_large_vocabulary_and_none_is_missing() {
        let logits: Vec<f32> = (0..151_936u64).map(|i| ((i * i * 7919) % 100_003) as f32 / 5000.0).collect();
        let greedy = Sampling::greedy();
        for (sampling, at_least) in [
            (Sampling { top_k: Some(50), ..greedy.clone() }, 50),
            (Sampling { temperature: 0.7, top_p: Some(0.5), ..greedy.clone() }, 1),
            (Sampling { temperature: 0.7, min_p: Some(0.1), ..greedy.clone() }, 1),
        ] {
            let mut candidates = Candidates::default();
            let peak = candidates.look(&logits).unwrap();
            let (chosen, _) = candidates.of(&logits, peak, &sampling);
            let least = chosen.logits.iter().copied().fold(f32::INFINITY, f32::min);
            assert!(
                (at_least..logits.len() / 4).contains(&chosen.logits.len()),
                "{sampling:?} {}",
                chosen.logits.len()
            );
            assert_eq!(logits.iter().filter(|&&x| x >= least).count(), chosen.logits.len(), "{sampling:?}");
            assert!((0..chosen.logits.len()).all(|place| logits[chosen.id(place)] == chosen.logits[place]));
        }
    }
}
