//! Encoders learn to bring a query near its passage and away from others: InfoNCE (van den Oord et al. 2018) with the passages of the
//! batch's other queries, and each row's own hard negatives, as what it is not.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor, TensorData};
use firebrick_backend::ops::linear::linear;
use firebrick_backend::{KernelBackend, TrainBackend};
use sha2::{Digest, Sha256};

use super::batch::{bin_ends, passes};
use super::data::{Dataset, Pair};
use super::task::{Evaluation, Retrieval, Task};
use crate::embed::{DEFAULT_BATCH_TOKENS, EmbedOptions, Embedder, TextTokens, unit_length};
use crate::error::{Error, Result};
use crate::model::Encoder;
use crate::sequence::Sequences;

/// The task, and how it is set.
#[derive(Clone, Debug)]
pub struct Contrastive {
    /// The way from texts to vectors.
    pub embedder: Embedder,
    /// Cosines are divided by it: the lower, the more the hardest negatives count.
    pub temperature: f64,
    /// Whether each passage also looks for its query among the batch's.
    pub symmetric: bool,
}

/// A temperature that E5's authors and others after them train with, give or take a factor of five.
pub const DEFAULT_TEMPERATURE: f64 = 0.05;

/// Rows as one forward pass: all queries, then the passage of each, then all hard negatives.
#[derive(Clone, Debug)]
pub struct PairBatch<B: KernelBackend> {
    tokens: Sequences<B>,
    rows: usize,
    /// Where a row's passage is among all passages and negatives, `[rows, documents]`: 1 at its own and 0 elsewhere.
    own: Vec<f32>,
    /// What is added to the scores, `[rows, documents]`: much below 0 for a document that is no negative, since it has the same text as the
    /// row's own or belongs to the same query.
    barred: Vec<f32>,
}

/// Texts of a validation that are embedded before somebody may end it.
const TEXTS_AT_ONCE: usize = 512;
/// Queries that are compared with all passages at a time.
const QUERIES_AT_ONCE: usize = 256;

/// Low enough that a softmax gives it nothing, in every float format.
const BARRED: f32 = -1e4;

impl<B: KernelBackend> PairBatch<B> {
    pub(crate) fn new(pairs: &[&Pair], device: &B::Device) -> Self {
        let rows = pairs.len();
        let queries = pairs.iter().map(|pair| &pair.query[..]);
        let documents: Vec<&[u32]> = pairs
            .iter()
            .map(|pair| &pair.positive[..])
            .chain(pairs.iter().flat_map(|pair| pair.negatives.iter().map(Vec::as_slice)))
            .collect();
        let (mut own, mut barred) = (vec![0.0; rows * documents.len()], vec![0.0; rows * documents.len()]);
        for (row, pair) in pairs.iter().enumerate() {
            own[row * documents.len() + row] = 1.0;
            for (at, document) in documents.iter().enumerate().filter(|(at, _)| *at != row) {
                let is_another_answer = pairs.get(at).is_some_and(|other| other.query == pair.query);
                if is_another_answer || *document == &pair.positive[..] {
                    barred[row * documents.len() + at] = BARRED;
                }
            }
        }
        let all: Vec<&[u32]> = queries.chain(documents.iter().copied()).collect();
        Self { tokens: Sequences::whole(&all, device), rows, own, barred }
    }

    /// The sum over the rows of the loss, from the hidden states of all texts, `[tokens, hidden]` → `[1]`.
    fn loss(&self, task: &Contrastive, hidden: Tensor<B, 2>) -> Tensor<B, 1> {
        let vectors = unit_length(task.embedder.vectors(hidden, &self.tokens.segments, None));
        let [texts, _] = vectors.dims();
        let documents = texts - self.rows;
        let (device, dtype) = (vectors.device(), vectors.dtype());
        let matrix = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [self.rows, documents]).convert_dtype(dtype);
            Tensor::<B, 2>::from_data(data, (&device, dtype))
        };
        let (own, barred) = (matrix(&self.own), matrix(&self.barred));
        let queries = vectors.clone().narrow(0, 0, self.rows);
        let scores = queries.matmul(vectors.narrow(0, self.rows, documents).transpose()) / task.temperature + barred;
        let of_queries = (log_softmax(scores.clone(), 1) * own.clone()).sum().neg();
        if !task.symmetric {
            return of_queries;
        }
        // A passage asks among the queries only: a hard negative has none of its own.
        let (scores, own) = (scores.narrow(1, 0, self.rows), own.narrow(1, 0, self.rows));
        let of_passages = (log_softmax(scores, 0) * own).sum().neg();
        (of_queries + of_passages) / 2.0
    }
}

impl Contrastive {
    /// With the usual temperature, one-sided.
    pub fn new(embedder: Embedder) -> Self {
        Self { embedder, temperature: DEFAULT_TEMPERATURE, symmetric: false }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] with the field's name, value and bounds.
    pub fn validate(&self) -> Result<()> {
        if (1e-4..=100.0).contains(&self.temperature) {
            return Ok(());
        }
        let (value, bounds) = (self.temperature.to_string(), "from 0.0001 to 100".into());
        Err(Error::OutOfBounds { name: "temperature", value, bounds })
    }

    /// The rank of each query's own passage, from 1, among all passages and hard negatives of the pairs, each text once.
    ///
    /// # Errors
    /// If a vector is not finite.
    ///
    /// # Panics
    /// On an autodiff backend.
    pub fn ranks<B: KernelBackend>(&self, model: &dyn Encoder<B>, pairs: &[Pair]) -> Result<Vec<usize>> {
        let ranks = self.ranks_while(model, pairs, &mut |_, _| ControlFlow::Continue(()))?;
        Ok(ranks.unwrap_or_else(|| unreachable!("nobody breaks")))
    }

    /// [`ranks`](Self::ranks), or nothing if `go_on` breaks; it is told how many texts are done, and of how many.
    fn ranks_while<B: KernelBackend>(
        &self,
        model: &dyn Encoder<B>,
        pairs: &[Pair],
        go_on: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<usize>>> {
        let mut places: BTreeMap<&[u32], usize> = BTreeMap::new();
        let mut corpus: Vec<Vec<u32>> = Vec::new();
        for text in pairs.iter().flat_map(|pair| std::iter::once(&pair.positive).chain(&pair.negatives)) {
            places.entry(text).or_insert_with(|| {
                corpus.push(text.clone());
                corpus.len() - 1
            });
        }
        let texts = pairs.iter().map(|pair| pair.query.clone()).chain(corpus);
        let texts: Vec<_> = texts.map(|ids| TextTokens { ids, truncated: false }).collect();
        let mut vectors = Vec::with_capacity(texts.len());
        for some in texts.chunks(TEXTS_AT_ONCE) {
            let embeddings = self.embedder.encode(model, some, &EmbedOptions::default())?;
            vectors.extend(embeddings.into_iter().map(|embedding| to_unit_length(embedding.vector)));
            if go_on(vectors.len(), texts.len()).is_break() {
                return Ok(None);
            }
        }
        let (queries, documents) = vectors.split_at(pairs.len());
        let matrix = |rows: &[Vec<f32>]| {
            let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
            Tensor::<B, 2>::from_data(TensorData::new(rows.concat(), shape), (&model.device(), DType::F32))
        };
        let documents = matrix(documents);
        let mut ranks = Vec::with_capacity(pairs.len());
        for (pairs, queries) in pairs.chunks(QUERIES_AT_ONCE).zip(queries.chunks(QUERIES_AT_ONCE)) {
            let scores = linear(matrix(queries), documents.clone(), None).into_data();
            let scores: Vec<f32> = scores.iter().collect();
            ranks.extend(pairs.iter().zip(scores.chunks_exact(documents.dims()[0])).map(|(pair, scores)| {
                let own = places[&pair.positive[..]];
                // Its own is among them. A tie counts against the model.
                scores.iter().filter(|score| **score >= scores[own]).count()
            }));
            if go_on(texts.len(), texts.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(ranks))
    }
}

impl Retrieval {
    /// From the rank of each query's own passage, from 1.
    pub fn from_ranks(ranks: &[usize]) -> Self {
        let mean = |of: &dyn Fn(usize) -> f64| ranks.iter().map(|&rank| of(rank)).sum::<f64>() / ranks.len() as f64;
        Self {
            recall_at_1: mean(&|rank| f64::from(u8::from(rank == 1))),
            recall_at_10: mean(&|rank| f64::from(u8::from(rank <= 10))),
            reciprocal_rank: mean(&|rank| 1.0 / rank as f64),
        }
    }
}

fn to_unit_length(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

impl<B: TrainBackend> Task<B> for Contrastive {
    type Model = dyn Encoder<B>;
    type Valid = dyn Encoder<B::InnerBackend>;
    type Example = Pair;
    type Batch = PairBatch<B>;
    /// A row alone has nothing to be told from.
    const LEAST: usize = 2;
    const PACKS: bool = false;
    const EVALUATED_TOKENS: usize = DEFAULT_BATCH_TOKENS;

    fn valid(model: &Self::Model) -> Box<Self::Valid> {
        model.valid()
    }

    fn batch(&self, examples: &[&Pair], device: &B::Device) -> PairBatch<B> {
        PairBatch::new(examples, device)
    }

    fn weight(pairs: &[&Pair]) -> f64 {
        pairs.len() as f64
    }

    fn sequences(batch: &PairBatch<B>) -> &Sequences<B> {
        &batch.tokens
    }

    fn loss_of_hidden(&self, _: &Self::Model, batch: &PairBatch<B>, hidden: Tensor<B, 2>) -> Tensor<B, 1> {
        batch.loss(self, hidden)
    }

    fn tokens(pair: &Pair) -> usize {
        pair.query.len() + pair.positive.len() + pair.negatives.iter().map(Vec::len).sum::<usize>()
    }

    fn weighted(_: &Pair) -> usize {
        0
    }

    fn line(pair: &Pair) -> usize {
        pair.line
    }

    fn largest_id(pair: &Pair) -> u32 {
        let texts = [&pair.query, &pair.positive].into_iter().chain(&pair.negatives);
        texts.flatten().copied().max().unwrap_or_default()
    }

    fn identify(pair: &Pair, hash: &mut Sha256) {
        hash.update((pair.negatives.len() as u64).to_le_bytes());
        for text in [&pair.query, &pair.positive].into_iter().chain(&pair.negatives) {
            hash.update((text.len() as u64).to_le_bytes());
            text.iter().for_each(|id| hash.update(id.to_le_bytes()));
        }
    }

    fn evaluate(
        &self,
        model: &Self::Valid,
        data: &Dataset<Pair>,
        batch_size: usize,
        go_on: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Evaluation>> {
        let examples = data.examples();
        let device = model.device();
        let (mut sum, mut done) = (0.0, 0);
        let ends = bin_ends(examples.iter().map(|_| 1), None);
        for rows in passes(&ends, batch_size, <Self as Task<B>>::LEAST) {
            let pairs: Vec<&Pair> = examples[rows].iter().collect();
            let batch = PairBatch::new(&pairs, &device);
            let loss = batch.loss(self, model.encode(&batch.tokens)).into_data();
            sum += loss.iter::<f64>().next().unwrap_or(f64::NAN);
            done += pairs.len();
            // The ranks, which follow, take about as long.
            if go_on(done, 2 * examples.len()).is_break() {
                return Ok(None);
            }
        }
        let loss = sum / examples.len() as f64;
        if !loss.is_finite() {
            return Err(Error::NotFinite { what: "the validation loss", place: None });
        }
        let ranks = self.ranks_while(model, examples, go_on)?;
        Ok(ranks.map(|ranks| Evaluation { loss, retrieval: Some(Retrieval::from_ranks(&ranks)) }))
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("temperature", self.temperature.to_string()), ("symmetric", self.symmetric.to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recalls_and_reciprocal_ranks_follow_from_ranks() {
        let retrieval = Retrieval::from_ranks(&[1, 2, 10, 11]);
        assert_eq!((retrieval.recall_at_1, retrieval.recall_at_10), (0.25, 0.75));
        assert!((retrieval.reciprocal_rank - (1.0 + 0.5 + 0.1 + 1.0 / 11.0) / 4.0).abs() < 1e-12);
    }

    #[test]
    fn equal_passages_and_answers_to_one_query_are_no_negatives() {
        let pair = |query: u32, positive: u32, negatives: &[u32]| Pair {
            query: vec![query],
            positive: vec![positive],
            negatives: negatives.iter().map(|&id| vec![id]).collect(),
            line: 1,
        };
        let pairs = [pair(1, 10, &[12]), pair(2, 10, &[]), pair(1, 11, &[10])];
        let views: Vec<&Pair> = pairs.iter().collect();
        let batch = PairBatch::<burn_flex::Flex>::new(&views, &Default::default());
        let barred: Vec<bool> = batch.barred.iter().map(|&value| value < 0.0).collect();
        let (x, o) = (true, false);
        // The documents are the passages 10, 10, 11 and the negatives 12, 10.
        assert_eq!(barred, [[o, x, x, o, x], [x, o, o, o, x], [x, o, o, o, o]].concat());
        assert_eq!(batch.tokens.segments.iter().len(), 8);
    }
}
