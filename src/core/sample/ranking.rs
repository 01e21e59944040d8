//! Where the ranking of a row of logits is cut: after the k likeliest tokens, or after those that hold a given mass.
//! Weights come from `softmax.rs`; the draw is made in `sample.rs`.
//!
//! Nothing sorts the vocabulary. Tokens are counted into buckets by their distance from the peak, the bucket in which the cut falls
//! is found, and only inside that bucket is there an order to establish.

use std::cmp::Ordering;

/// Bits of a distance dropped to name its bucket. The exponent and six bits of mantissa remain: 64 buckets for each doubling, so
/// that logits of any scale spread well. At a vocabulary of 151,936 normal logits a bucket holds some thousands.
const DROPPED_BITS: u32 = 17;

/// Up to here one bucket for all is quicker than clearing many.
const FEW_TOKENS: usize = 4096;

/// Below this many members a sort is as quick as another halving.
const SORTED_MEMBERS: usize = 64;

/// The last token kept, in the order of falling logit and, among equals, rising id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    logit: f32,
    id: u32,
}

impl Cut {
    /// Whether a token ranks at or before the cut.
    #[inline(always)]
    pub(super) fn keeps(self, logit: f32, id: u32) -> bool {
        (logit > self.logit) | ((logit == self.logit) & (id <= self.id))
    }
}

/// Counts and masses by bucket; kept between rows to reuse the memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranking {
    buckets: Vec<Bucket>,
    members: Vec<Cut>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    mass: f64,
    count: usize,
}

/// A row of logits with its weights: `exp` of the distance from the peak, over the temperature.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) logits: &'a [f32],
    pub(super) weights: &'a [f32],
    pub(super) peak: f32,
}

impl Row<'_> {
    /// Smaller for larger logits, and the same for equal ones: the bits of positive floats rise with their values. (`abs`, because
    /// -0 - 0 is -0.)
    #[inline(always)]
    fn bucket(&self, logit: f32) -> usize {
        // Without its sign a float has 31 bits.
        let dropped = if self.logits.len() <= FEW_TOKENS { 31 } else { DROPPED_BITS };
        ((self.peak - logit).abs().to_bits() >> dropped) as usize
    }
}

impl Ranking {
    /// The cut after the first `top_k` tokens, then within them after the fewest tokens that hold at least `top_p` of their mass, or of
    /// the `mass` that is given. `None` keeps every token.
    pub(super) fn cut(
        &mut self,
        row: Row<'_>,
        top_k: Option<usize>,
        top_p: Option<f32>,
        mass: Option<f64>,
    ) -> Option<Cut> {
        let top_k = top_k.filter(|&k| k < row.logits.len());
        let top_p = top_p.filter(|&p| p < 1.0);
        if top_k.is_none() && top_p.is_none() {
            return None;
        }
        self.count(row);
        let kept = top_k.map(|k| self.first(row, k));
        let Some(top_p) = top_p else { return kept.map(|(cut, _)| cut) };
        let all = || mass.unwrap_or_else(|| self.buckets.iter().map(|bucket| bucket.mass).sum());
        let mass = kept.map_or_else(all, |(_, mass)| mass);
        // The target lies within the mass of the first k, so this cut is never the later one, except by rounding.
        let nucleus = self.holding(row, f64::from(top_p) * mass);
        match (kept, nucleus) {
            (Some((cut, _)), Some(nucleus)) if cut.keeps(nucleus.logit, nucleus.id) => Some(nucleus),
            (Some((cut, _)), _) => Some(cut),
            (None, nucleus) => nucleus,
        }
    }

    fn count(&mut self, row: Row<'_>) {
        self.buckets.clear();
        self.buckets.resize(row.bucket(f32::NEG_INFINITY) + 1, Bucket::default());
        for (&logit, &weight) in row.logits.iter().zip(row.weights) {
            let bucket = &mut self.buckets[row.bucket(logit)];
            bucket.mass += f64::from(weight);
            bucket.count += 1;
        }
    }

    /// The cut after `k` tokens, of more than `k`, and the mass up to it.
    fn first(&mut self, row: Row<'_>, k: usize) -> (Cut, f64) {
        let (mut left, mut mass, mut index) = (k, 0.0, 0);
        while self.buckets[index].count < left {
            left -= self.buckets[index].count;
            mass += self.buckets[index].mass;
            index += 1;
        }
        self.collect(row, index);
        let (_, &mut cut, _) = self.members.select_nth_unstable_by(left - 1, ranked);
        let inside = self.members[..left].iter().map(|member| f64::from(row.weights[member.id as usize])).sum::<f64>();
        (cut, mass + inside)
    }

    /// The cut after the fewest tokens whose mass reaches `target`; `None` if, by rounding, all of them do not.
    fn holding(&mut self, row: Row<'_>, target: f64) -> Option<Cut> {
        let (mut mass, mut index) = (0.0, 0);
        while mass + self.buckets.get(index)?.mass < target {
            mass += self.buckets[index].mass;
            index += 1;
        }
        self.collect(row, index);
        let weight = |member: &Cut| f64::from(row.weights[member.id as usize]);
        let mut members = &mut self.members[..];
        while members.len() > SORTED_MEMBERS {
            let middle = members.len() / 2;
            members.select_nth_unstable_by(middle, ranked);
            let (likelier, others) = members.split_at_mut(middle);
            let inside = likelier.iter().map(weight).sum::<f64>();
            if mass + inside < target {
                mass += inside;
                members = others;
            } else {
                members = likelier;
            }
        }
        members.sort_unstable_by(ranked);
        let last = members.last().copied();
        let reaches = |member: &&mut Cut| {
            mass += weight(member);
            mass >= target
        };
        members.iter_mut().find(reaches).map(|cut| *cut).or(last)
    }

    fn collect(&mut self, row: Row<'_>, index: usize) {
        self.members.clear();
        for (id, &logit) in row.logits.iter().enumerate() {
            if row.bucket(logit) == index {
                self.members.push(Cut { logit, id: id as u32 });
            }
        }
    }
}

fn ranked(a: &Cut, b: &Cut) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}
