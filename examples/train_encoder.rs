//! How `examples/tiny/rust-e5-tiny` was made: an E5-shaped encoder of two layers, trained from nothing but a token table on the bundled
//! explanations of Rust's errors. A sentence is the query, what is left of its explanation the passage.
//!
//! `cargo run --release --example train_encoder -- OUTPUT [ROUNDS] [STEPS]`
//!
//! An adapter of low rank cannot make a network from random weights. Several in a row can: each round trains one of rank 64 on every
//! linear and folds it into the weights, so that the sum of the rounds is of any rank. The token table is made from that of `rust-tiny`, a
//! language model trained on these same texts among others; positions are the sines and cosines of the first Transformer. Neither is
//! trained.

mod pairs;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::TensorData;
use firebrick::core::checkpoint::{PYTORCH_FORMAT, TensorFile, TensorSpecification, write_atomic, write_safetensors};
use firebrick::core::disk::System;
use firebrick::core::train::adamw::AdamWConfig;
use firebrick::core::train::data::Pair;
use firebrick::core::train::schedule::{LearningRate, Schedule};
use firebrick::prelude::*;
use serde_json::json;

const HIDDEN: usize = 256;
const WIDE: usize = 512;
const LAYERS: usize = 2;
const POSITIONS: usize = 256;
/// Tokens of a text in training; the model takes more.
const TRAINED_TOKENS: usize = 112;

struct TrainEncoder {
    output: PathBuf,
    rounds: usize,
    steps: usize,
}

impl Job for TrainEncoder {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let documents = pairs::documents()?;
        let mut weights = first_weights(&documents)?;
        write(&self.output, &weights, DType::F32)?;
        let measured = pairs::questions(&documents, true, |document| pairs::sentences(document, 0));
        report("BM25", &pairs::bm25_ranks(&measured.0, &measured.1), &measured);
        for round in 0..self.rounds {
            let model = EmbeddingModel::<B>::load(&self.output, &device)?;
            let base = model.valid();
            report(&format!("after {round} rounds"), &pairs::ranks(&base, &measured.0, &measured.1)?, &measured);

            let embedder = model.embedder().with_max_tokens(TRAINED_TOKENS)?;
            let data = Dataset::from_pairs(rows(&documents, round, &embedder)?);
            let lora = LoraConfig { rank: 64, alpha: 64.0, dropout: 0.1, targets: Targets::AllLinear, rslora: false };
            let adapter = Adapter::create(base.model(), &lora, round as u64)?;
            let peak = 2e-3 * (1.0 - 0.7 * round as f64 / self.rounds as f64);
            let config = TrainConfig {
                learning_rate: LearningRate {
                    peak,
                    schedule: Schedule::Cosine,
                    warmup_steps: 5,
                    final_fraction: Some(0.05),
                },
                batch_size: 48,
                adamw: AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() },
                duration: Duration::Steps(self.steps),
                seed: round as u64,
                ..TrainConfig::default()
            };
            let task = Contrastive { symmetric: true, ..Contrastive::new(embedder) };
            let mut trainer = Trainer::contrastive(model.model(), task, adapter, config)?;
            trainer.run(&data, None, &mut |event| {
                if let Event::Step(step) = event
                    && step.step % 10 == 0
                {
                    println!("round {round}, step {}: loss {:.3}, {:.1} s a step", step.step, step.loss, step.seconds);
                }
                ControlFlow::Continue(())
            })?;
            let mut merged = trainer.adapter().merge(base.model())?;
            merged.each_linear(&mut |path, linear| {
                weights.insert(format!("{path}.weight"), linear.weight.clone().into_data());
            });
            write(&self.output, &weights, DType::F32)?;
        }
        write(&self.output, &weights, DType::F16)?;
        let model = EmbeddingModel::<B::InnerBackend>::load(&self.output, &device)?;
        report("as saved, f16", &pairs::ranks(&model, &measured.0, &measured.1)?, &measured);
        Ok(())
    }
}

/// The rows of a round: sentences, some with words left out, and blocks of code as queries; passages that begin at different places, since
/// only their first tokens are read in training.
fn rows(documents: &[pairs::Document], round: usize, embedder: &Embedder) -> Result<Vec<Pair>> {
    const VARIANTS: usize = 3;
    let mut rows = Vec::new();
    for (number, document) in documents.iter().enumerate().filter(|(number, _)| !pairs::is_held_out(*number)) {
        for variant in 0..VARIANTS {
            let turn = round * VARIANTS + variant;
            let (queries, passage) =
                if variant == 2 && round % 2 == 1 { pairs::code(document) } else { pairs::sentences(document, turn) };
            let words: Vec<&str> = passage.split_inclusive(char::is_whitespace).collect();
            let begin = turn * 40 % words.len().max(1);
            // Not so late that hardly anything is left.
            let passage = words[begin.min(words.len() * 2 / 3)..].concat();
            if words.len() < 5 {
                continue;
            }
            for (at, query) in queries.iter().enumerate() {
                let is_left_out = |place: usize| turn % 2 == 1 && (place + at + turn).is_multiple_of(3);
                let words = query.split_inclusive(char::is_whitespace).enumerate();
                let query: String = words.filter(|(place, _)| !is_left_out(*place)).map(|(_, word)| word).collect();
                rows.push(Pair {
                    query: embedder.tokenize(&query, Kind::Query)?.ids,
                    positive: embedder.tokenize(&passage, Kind::Passage)?.ids,
                    negatives: Vec::new(),
                    line: number + 1,
                });
            }
        }
    }
    Ok(rows)
}

fn report(what: &str, ranks: &[usize], (questions, passages): &(Vec<pairs::Question>, Vec<String>)) {
    let Retrieval { recall_at_1, recall_at_10, reciprocal_rank } = Retrieval::from_ranks(ranks);
    println!(
        "{what}: {} held-out questions, {} passages: recall@1 {recall_at_1:.3}, recall@10 {recall_at_10:.3}, MRR {reciprocal_rank:.3}",
        questions.len(),
        passages.len()
    );
}

/// How much each token says: 0 for one that every document has, 1 for one that only one has, counted over those that are trained on.
fn rarities(documents: &[pairs::Document], vocabulary: usize) -> Result<Vec<f32>> {
    let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny"));
    let tokenizer = Tokenizer::from_folder(tiny)?;
    let (mut holding, mut count) = (vec![1.0f32; vocabulary], 1.0f32);
    for (_, document) in documents.iter().enumerate().filter(|(number, _)| !pairs::is_held_out(*number)) {
        let tokens: BTreeSet<u32> = tokenizer.encode(&document.text, false)?.into_iter().collect();
        tokens.into_iter().for_each(|id| holding[id as usize] += 1.0);
        count += 1.0;
    }
    Ok(holding.into_iter().map(|holding| (count / holding).ln() / count.ln()).collect())
}

/// Small random linears, norms that do nothing yet, and the tables that are given. A token's row is its direction in `rust-tiny`, less what
/// all tokens share, and the more of one common direction instead the less the token says (after Arora et al. 2017), since the norm behind
/// the table takes lengths away.
fn first_weights(documents: &[pairs::Document]) -> Result<BTreeMap<String, TensorData>> {
    let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny/model.safetensors"));
    let table =
        TensorFile::open(tiny, &firebrick::core::checkpoint::Limits::MODEL)?.data("model.embed_tokens.weight")?;
    let vocabulary = table.shape[0];
    let mut table: Vec<f32> = table.convert_dtype(DType::F32).iter::<f32>().collect();
    let mean: Vec<f32> =
        (0..HIDDEN).map(|at| table.iter().skip(at).step_by(HIDDEN).sum::<f32>() / vocabulary as f32).collect();
    for (row, rarity) in table.chunks_mut(HIDDEN).zip(rarities(documents, vocabulary)?) {
        row.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        for (at, value) in row.iter_mut().enumerate() {
            let common = if at % 2 == 0 { 1.0 } else { -1.0 } / (HIDDEN as f32).sqrt();
            *value = rarity * *value / length + (1.0 - rarity) * common;
        }
    }
    let spread = (table.iter().map(|x| x * x).sum::<f32>() / table.len() as f32).sqrt();
    let mut weights = BTreeMap::new();
    let mut state = 20_261_121u64;
    let mut random = |bound: f32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * bound
    };
    let mut insert = |name: String, values: Vec<f32>, shape: &[usize]| {
        weights.insert(name, TensorData::new(values, shape));
    };
    insert("embeddings.word_embeddings.weight".into(), table, &[vocabulary, HIDDEN]);
    let angle = |position: usize, feature: usize| {
        let wavelength = 10_000f32.powf((feature / 2 * 2) as f32 / HIDDEN as f32);
        let angle = position as f32 / wavelength;
        // A tenth as large as the tokens.
        spread / 10.0 * 2f32.sqrt() * if feature.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    let positions = (0..POSITIONS).flat_map(|position| (0..HIDDEN).map(move |feature| angle(position, feature)));
    insert("embeddings.position_embeddings.weight".into(), positions.collect(), &[POSITIONS, HIDDEN]);
    insert("embeddings.token_type_embeddings.weight".into(), vec![0.0; HIDDEN], &[1, HIDDEN]);
    let mut norm = |path: &str| {
        insert(format!("{path}.weight"), vec![1.0; HIDDEN], &[HIDDEN]);
        insert(format!("{path}.bias"), vec![0.0; HIDDEN], &[HIDDEN]);
    };
    norm("embeddings.LayerNorm");
    for layer in 0..LAYERS {
        norm(&format!("encoder.layer.{layer}.attention.output.LayerNorm"));
        norm(&format!("encoder.layer.{layer}.output.LayerNorm"));
    }
    for layer in 0..LAYERS {
        for (name, out, inputs) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", WIDE, HIDDEN),
            ("output.dense", HIDDEN, WIDE),
        ] {
            let path = format!("encoder.layer.{layer}.{name}");
            insert(format!("{path}.bias"), vec![0.0; out], &[out]);
            // BERT's spread of 0.02.
            insert(format!("{path}.weight"), (0..out * inputs).map(|_| random(0.035)).collect(), &[out, inputs]);
        }
    }
    Ok(weights)
}

/// The folder as sentence-transformers lays it out, with the bundled tokenizer.
fn write(folder: &Path, weights: &BTreeMap<String, TensorData>, dtype: DType) -> Result<()> {
    std::fs::create_dir_all(folder.join("1_Pooling"))?;
    let specification = |(name, data): (&String, &TensorData)| TensorSpecification {
        name: name.clone(),
        dtype,
        shape: data.shape.to_vec(),
    };
    let specifications: Vec<_> = weights.iter().map(specification).collect();
    write_safetensors(&System, &folder.join("model.safetensors"), &specifications, PYTORCH_FORMAT, |tensor| {
        Ok(weights[&tensor.name].clone().convert_dtype(dtype))
    })?;
    let vocabulary = weights["embeddings.word_embeddings.weight"].shape[0];
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "_name_or_path": "firebrick/rust-e5-tiny",
        "vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "type_vocab_size": 1, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "position_embedding_type": "absolute",
        "torch_dtype": if dtype == DType::F16 { "float16" } else { "float32" },
    });
    let modules = json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]);
    let pooling = json!({"embedding_dimension": HIDDEN, "pooling_mode": "mean", "include_prompt": true});
    let prompts = json!({"prompts": {"query": "query: ", "passage": "passage: "}, "similarity_fn_name": "cosine"});
    for (name, value) in [
        ("config.json", config),
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", prompts),
        ("sentence_bert_config.json", json!({"max_seq_length": POSITIONS, "do_lower_case": false})),
    ] {
        let text = serde_json::to_string_pretty(&value)?;
        write_atomic(&System, &folder.join(name), format!("{text}\n").as_bytes())?;
    }
    let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(name), folder.join(name))?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let output = arguments.next().context("the folder to write")?.into();
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (rounds, steps) = (number(4)?, number(60)?);
    dispatch(BackendName::named("auto")?, TrainEncoder { output, rounds, steps })?
}
