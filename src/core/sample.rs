//! From logits to a token: penalties, temperature, top-k, top-p, min-p, the draw, and log-probabilities. The loop that asks for
//! tokens lives in `decode.rs`, the defaults a model ships with in `generation.rs`.
//!
//! Options combine; none switches another off. They act in this order, which is that of transformers:
//! repetition penalty, frequency and presence penalty, temperature, top-k, top-p, min-p, draw.

mod candidates;
mod ranking;
mod softmax;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use candidates::{Candidates, Chosen};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use ranking::{Cut, Ranking, Row};
use std::cmp::Ordering;

/// How the next token is chosen. The default is greedy: `Sampling { temperature: 0.7, ..Sampling::greedy() }` changes one thing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token (after the penalties), the lowest id among equals.
    pub temperature: f32,
    /// Keeps exactly this many of the likeliest tokens; among equals the lowest ids.
    pub top_k: Option<usize>,
    /// Of the tokens top-k left, keeps the fewest of the likeliest whose probabilities sum to at least this; always at least one.
    pub top_p: Option<f32>,
    /// Keeps the tokens at least this times as probable as the likeliest.
    pub min_p: Option<f32>,
    /// Above 1, makes every token of the prompt and the answer less likely: its logit is divided by this if positive, else
    /// multiplied. How often the token occurred does not matter.
    pub repetition_penalty: Option<f32>,
    /// Taken from the logit of every token generated so far, once.
    pub presence_penalty: Option<f32>,
    /// Taken from the logit of every token generated so far, for each time it was.
    pub frequency_penalty: Option<f32>,
    /// Where the random draws start; the same seed, logits and options give the same tokens on every machine.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Whether no random draw takes part.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every option.
    ///
    /// Errors: [`Error::OutOfBounds`] with the option's name, value and bounds.
    pub fn validate(&self) -> Result<()> {
        let check = |name, value: Option<f32>, allowed: fn(f32) -> bool, bounds: &str| match value {
            Some(value) if !allowed(value) => {
                Err(Error::OutOfBounds { name, value: value.to_string(), bounds: bounds.to_owned() })
            }
            _ => Ok(()),
        };
        // A NaN lies in no range.
        check("temperature", Some(self.temperature), |t| (0.0..=100.0).contains(&t), "from 0 (greedy) to 100")?;
        if self.top_k == Some(0) {
            let bounds = "at least 1; leave it out to keep every token".to_owned();
            return Err(Error::OutOfBounds { name: "top_k", value: "0".to_owned(), bounds });
        }
        check("top_p", self.top_p, |p| p > 0.0 && p <= 1.0, "above 0, up to 1")?;
        check("min_p", self.min_p, |p| (0.0..=1.0).contains(&p), "from 0 to 1")?;
        check("repetition_penalty", self.repetition_penalty, |p| p > 0.0 && p <= 100.0, "above 0, up to 100")?;
        let additive = |p: f32| (-100.0..=100.0).contains(&p);
        check("presence_penalty", self.presence_penalty, additive, "from -100 to 100")?;
        check("frequency_penalty", self.frequency_penalty, additive, "from -100 to 100")
    }
}

/// The tokens before the one to choose. The repetition penalty looks at both parts, presence and frequency at the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History<'a> {
    /// What the model was given.
    pub prompt: &'a [u32],
    /// What it has answered so far.
    pub generated: &'a [u32],
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Its natural log-probability in the model's own distribution, before any penalty, temperature or filter.
    pub logprob: f32,
}

/// Chooses tokens one after another. It owns its random stream and its buffers; one sampler serves one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    penalised: Vec<f32>,
    occurrences: Vec<u32>,
    candidates: Candidates,
    weights: Vec<f32>,
    block_sums: Vec<f64>,
    ranking: Ranking,
}

impl Sampler {
    /// A sampler at the start of the random stream that the seed names.
    ///
    /// Errors: those of [`Sampling::validate`].
    pub fn new(sampling: &Sampling) -> Result<Self> {
        sampling.validate()?;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&sampling.seed.to_le_bytes());
        Ok(Self {
            sampling: sampling.clone(),
            random: ChaCha8Rng::from_seed(seed),
            penalised: Vec::new(),
            occurrences: Vec::new(),
            candidates: Candidates::default(),
            weights: Vec::new(),
            block_sums: Vec::new(),
            ranking: Ranking::default(),
        })
    }

    /// Chooses the token that follows `history`, given the model's logits for it: one per token of the vocabulary.
    ///
    /// Errors: [`Error::NotFinite`] for a NaN or +inf logit, or if all are -inf (one -inf only excludes its token);
    /// [`Error::UnknownToken`] for a penalised id beyond the logits.
    pub fn next(&mut self, logits: &[f32], history: History<'_>) -> Result<Choice> {
        let peak = self.candidates.look(logits)?;
        let log_sum = softmax::log_sum_exp(logits, peak);
        let id = if self.penalise(logits, history)? {
            let penalised = std::mem::take(&mut self.penalised);
            let id = self.candidates.look(&penalised).map(|peak| self.choose(&penalised, peak));
            self.penalised = penalised;
            id?
        } else {
            self.choose(logits, peak)
        };
        Ok(Choice { id: id as u32, logprob: (f64::from(logits[id]) - log_sum) as f32 })
    }

    /// Fills `self.penalised`; false if no penalty applies.
    fn penalise(&mut self, logits: &[f32], history: History<'_>) -> Result<bool> {
        let History { mut prompt, generated } = history;
        let repetition = self.sampling.repetition_penalty.unwrap_or(1.0);
        let presence = self.sampling.presence_penalty.unwrap_or(0.0);
        let frequency = self.sampling.frequency_penalty.unwrap_or(0.0);
        let repeats = repetition != 1.0;
        if !repeats {
            prompt = &[];
        }
        if (!repeats && presence == 0.0 && frequency == 0.0) || (prompt.is_empty() && generated.is_empty()) {
            return Ok(false);
        }
        let every = || prompt.iter().chain(generated);
        if let Some(&id) = every().find(|&&id| id as usize >= logits.len()) {
            return Err(Error::UnknownToken { id, vocabulary: logits.len() });
        }
        self.penalised.clear();
        self.penalised.extend_from_slice(logits);
        // All zero here, and again when this function returns: only what the history touches is touched.
        self.occurrences.resize(logits.len(), 0);
        if repeats {
            for &id in every() {
                if std::mem::replace(&mut self.occurrences[id as usize], 1) == 0 {
                    let logit = &mut self.penalised[id as usize];
                    *logit = bounded(*logit, if *logit > 0.0 { *logit / repetition } else { *logit * repetition });
                }
            }
            every().for_each(|&id| self.occurrences[id as usize] = 0);
        }
        generated.iter().for_each(|&id| self.occurrences[id as usize] += 1);
        for &id in generated {
            let count = std::mem::take(&mut self.occurrences[id as usize]);
            if count > 0 {
                let logit = &mut self.penalised[id as usize];
                *logit = bounded(*logit, *logit - frequency * count as f32 - presence);
            }
        }
        Ok(true)
    }

    /// A token of the row that was looked at.
    fn choose(&mut self, logits: &[f32], peak: f32) -> usize {
        if self.sampling.is_greedy() {
            return self.candidates.first_of(logits, peak);
        }
        let mut candidates = std::mem::take(&mut self.candidates);
        let (chosen, mass) = candidates.of(logits, peak, &self.sampling);
        self.distribute(chosen, peak, mass);
        let id = chosen.id(self.draw());
        self.candidates = candidates;
        id
    }

    /// Leaves the unnormalised probability of every candidate in `self.weights`, 0 for those that the filters exclude.
    fn distribute(&mut self, chosen: Chosen<'_>, peak: f32, mass: Option<f64>) {
        let Self { sampling, weights, .. } = self;
        let logits = chosen.logits;
        softmax::weigh(logits, peak, sampling.temperature, weights);
        let cut = self.ranking.cut(Row { logits, weights, peak }, sampling.top_k, sampling.top_p, mass);
        // The likeliest token weighs exactly 1.
        let floor = sampling.min_p.unwrap_or(0.0);
        if let Some(cut) = cut {
            keep(weights, logits, floor, cut);
        } else if floor > 0.0 {
            weights.iter_mut().for_each(|weight| *weight = if *weight >= floor { *weight } else { 0.0 });
        }
        self.block_sums.clear();
        self.block_sums.extend(self.weights.chunks(softmax::BLOCK).map(softmax::sum));
    }

    /// The place of a candidate by its weight. Candidates are laid end to end in the order of their ids, so the result depends on no sort.
    fn draw(&mut self) -> usize {
        // The upper 53 bits: every multiple of 2^-53 in [0, 1).
        let uniform = (self.random.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        let mut left = uniform * self.block_sums.iter().sum::<f64>();
        let mut last = 0;
        for (block, &sum) in self.block_sums.iter().enumerate() {
            if sum == 0.0 {
                continue;
            }
            let start = block * softmax::BLOCK;
            let weights = &self.weights[start..self.weights.len().min(start + softmax::BLOCK)];
            if left < sum {
                for (offset, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                    last = start + offset;
                    left -= f64::from(weight);
                    if left < 0.0 {
                        return last;
                    }
                }
            } else {
                left -= sum;
                last = weights.iter().rposition(|&weight| weight > 0.0).map_or(last, |offset| start + offset);
            }
        }
        // Only rounding leads here: the point lay at the very end.
        last
    }
}

/// The `n` likeliest tokens of the model's own distribution with their natural log-probabilities, likeliest first, the lowest id
/// first among equals. Tokens of probability zero are left out.
///
/// Errors: [`Error::NotFinite`] as in [`Sampler::next`].
pub fn top_logprobs(logits: &[f32], n: usize) -> Result<Vec<(u32, f32)>> {
    let mut candidates = Candidates::default();
    let peak = candidates.look(logits)?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let log_sum = softmax::log_sum_exp(logits, peak);
    let (chosen, _) = candidates.of(logits, peak, &Sampling { top_k: Some(n), ..Sampling::greedy() });
    let mut weights = Vec::new();
    softmax::weigh(chosen.logits, peak, 1.0, &mut weights);
    let cut = Ranking::default().cut(Row { logits: chosen.logits, weights: &weights, peak }, Some(n), None, None);
    let places = (0..).zip(chosen.logits.iter().copied()).filter(|&(place, x)| kept(cut, x, place));
    let mut top: Vec<(u32, f32)> = places.map(|(place, x)| (chosen.id(place as usize) as u32, x)).collect();
    // Stable, so that equals stay in the order of their ids.
    top.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
    top.iter_mut().for_each(|(_, x)| *x = (f64::from(*x) - log_sum) as f32);
    Ok(top)
}

fn kept(cut: Option<Cut>, logit: f32, id: u32) -> bool {
    logit > f32::NEG_INFINITY && cut.is_none_or(|cut| cut.keeps(logit, id))
}

fn keep(weights: &mut [f32], logits: &[f32], floor: f32, cut: Cut) {
    for (id, (weight, &logit)) in (0..).zip(weights.iter_mut().zip(logits)) {
        *weight = if cut.keeps(logit, id) & (*weight >= floor) { *weight } else { 0.0 };
    }
}

/// A penalised logit, kept finite unless its token was excluded already.
fn bounded(before: f32, after: f32) -> f32 {
    if before == f32::NEG_INFINITY { before } else { after.clamp(f32::MIN, f32::MAX) }
}
