//! Pairs for retrieval made from the bundled explanations of Rust's errors, and BM25 to compare with. Shared by the examples that train.
#![allow(dead_code)] // Each example uses a part.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};
use firebrick::core::train::data::Pair;
use firebrick::prelude::*;
use serde_json::Value;

/// An explanation: its error code and its text.
pub struct Document {
    pub code: String,
    pub text: String,
}

/// A text to search for, and the number of the document it is from.
pub struct Question {
    pub text: String,
    pub document: usize,
}

/// Every bundled explanation, in the order of the error codes.
pub fn documents() -> Result<Vec<Document>> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny"));
    let mut documents = Vec::new();
    for name in ["train.jsonl", "valid.jsonl"] {
        for line in std::fs::read_to_string(folder.join(name))?.lines() {
            let row: Value = serde_json::from_str(line)?;
            let prompt = row["prompt"].as_str().context("a prompt")?;
            let code = prompt.trim_start_matches("Explain ").trim_end_matches('.').to_owned();
            let text = row["completion"].as_str().context("a completion")?.to_owned();
            documents.push(Document { code, text });
        }
    }
    documents.sort_by(|a, b| a.code.cmp(&b.code));
    Ok(documents)
}

/// Whether a document is kept for measuring: every fourth. Nothing made of it is ever trained on.
pub fn is_held_out(document: usize) -> bool {
    document % 4 == 2
}

/// The prose of a text, paragraph by paragraph, and its blocks of code, without the lines that rustdoc hides.
pub fn prose_and_code(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut prose, mut code) = (Vec::new(), Vec::new());
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 0 {
            prose.extend(part.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" ")));
        } else {
            let hidden = |line: &&str| !line.starts_with("#![allow") && !line.starts_with("# ");
            // The first line says which language it is.
            code.push(part.lines().skip(1).filter(hidden).collect::<Vec<_>>().join("\n"));
        }
    }
    prose.retain(|paragraph| !paragraph.is_empty());
    code.retain(|block| block.len() > 20);
    (prose, code)
}

/// Sentences of a document as questions, and what is left of it without them as the passage. Which ones is decided by `round`.
pub fn sentences(document: &Document, round: usize) -> (Vec<String>, String) {
    const MOST: usize = 5;
    let (prose, code) = prose_and_code(&document.text);
    let all: Vec<String> = prose
        .iter()
        .flat_map(|paragraph| paragraph.split_inclusive(". "))
        .map(|sentence| sentence.trim().to_owned())
        .filter(|sentence| !sentence.starts_with("Note: this error code is no longer"))
        .collect();
    let long_enough = |sentence: &&String| (5..=60).contains(&sentence.split_whitespace().count());
    let candidates = all.iter().filter(long_enough).count();
    // At least half of the sentences stay, or there would be nothing left to find.
    let most = MOST.min(candidates / 2).max(usize::from(candidates > 1));
    let step = (candidates / most.max(1)).max(1);
    let mut at = 0;
    let (mut questions, mut rest) = (Vec::new(), Vec::new());
    for sentence in &all {
        let is_candidate = long_enough(&sentence);
        if is_candidate && at % step == round % step && questions.len() < most {
            questions.push(sentence.clone());
        } else {
            rest.push(sentence.as_str());
        }
        at += usize::from(is_candidate);
    }
    let mut passage = rest.join(" ");
    for block in code {
        passage += "\n";
        passage += &block;
    }
    (questions, passage)
}

/// Blocks of code as questions, and the prose as the passage.
pub fn code(document: &Document) -> (Vec<String>, String) {
    let (prose, code) = prose_and_code(&document.text);
    (code, prose.join(" "))
}

/// The questions of the documents that are held out, or of the others, and the passage of every document.
pub fn questions(
    documents: &[Document],
    held_out: bool,
    make: impl Fn(&Document) -> (Vec<String>, String),
) -> (Vec<Question>, Vec<String>) {
    let (mut questions, mut passages) = (Vec::new(), Vec::new());
    for (number, document) in documents.iter().enumerate() {
        let (texts, passage) = make(document);
        passages.push(passage);
        if is_held_out(number) == held_out {
            questions.extend(texts.into_iter().map(|text| Question { text, document: number }));
        }
    }
    if held_out {
        // Some explanations share a sentence or an example word for word: such a question would have been seen.
        let others = documents.iter().enumerate().filter(|(number, _)| !is_held_out(*number));
        let seen: HashSet<String> = others.flat_map(|(_, document)| make(document).0).collect();
        questions.retain(|question| !seen.contains(&question.text));
    }
    (questions, passages)
}

/// Rows to train on.
pub fn pairs(questions: &[Question], passages: &[String], embedder: &Embedder) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for (at, question) in questions.iter().enumerate() {
        let positive = &passages[question.document];
        if positive.split_whitespace().count() < 5 {
            continue;
        }
        pairs.push(Pair {
            query: embedder.tokenize(&question.text, Kind::Query)?.ids,
            positive: embedder.tokenize(positive, Kind::Passage)?.ids,
            negatives: Vec::new(),
            line: at + 1,
        });
    }
    Ok(pairs)
}

/// The rank of each question's own passage among all, from 1, by the cosine of their vectors. A tie counts against the model.
pub fn ranks<B: KernelBackend>(
    model: &EmbeddingModel<B>,
    questions: &[Question],
    passages: &[String],
) -> Result<Vec<usize>> {
    let texts: Vec<&str> = questions.iter().map(|question| question.text.as_str()).collect();
    let queries = model.encode(&texts, Kind::Query)?;
    let passages = model.encode(passages, Kind::Passage)?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let scores = |query: &Embedding| -> Vec<f32> { passages.iter().map(|p| dot(&query.vector, &p.vector)).collect() };
    Ok(questions.iter().zip(&queries).map(|(question, query)| rank(&scores(query), question.document)).collect())
}

/// The same by BM25 (Robertson & Zaragoza 2009) with its usual constants.
pub fn bm25_ranks(questions: &[Question], passages: &[String]) -> Vec<usize> {
    const K1: f32 = 1.2;
    const B: f32 = 0.75;
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let passages: Vec<Vec<String>> = passages.iter().map(|passage| words(passage)).collect();
    let mean = passages.iter().map(Vec::len).sum::<usize>() as f32 / passages.len() as f32;
    let mut holding: HashMap<&str, f32> = HashMap::new();
    for passage in &passages {
        let unique: HashSet<&str> = passage.iter().map(String::as_str).collect();
        unique.into_iter().for_each(|word| *holding.entry(word).or_default() += 1.0);
    }
    let score = |question: &[String], passage: &Vec<String>| -> f32 {
        let unique: HashSet<&String> = question.iter().collect();
        let term = |word: &&String| {
            let count = passage.iter().filter(|other| other == word).count() as f32;
            let holding = holding.get(word.as_str()).copied().unwrap_or(0.0);
            let rarity = ((passages.len() as f32 - holding + 0.5) / (holding + 0.5) + 1.0).ln();
            rarity * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * passage.len() as f32 / mean))
        };
        // Summed in an order of their own, so that the result is the same each time.
        let mut terms: Vec<f32> = unique.iter().map(term).collect();
        terms.sort_by(f32::total_cmp);
        terms.iter().sum()
    };
    let rank_of = |question: &Question| {
        let asked = words(&question.text);
        let scores: Vec<f32> = passages.iter().map(|passage| score(&asked, passage)).collect();
        rank(&scores, question.document)
    };
    questions.iter().map(rank_of).collect()
}

fn rank(scores: &[f32], own: usize) -> usize {
    1 + scores.iter().enumerate().filter(|(at, score)| *at != own && **score >= scores[own]).count()
}

/// The middle 95 % of the difference in recall@1 between two rankings of the same questions, over 10,000 resamplings of the documents'
/// questions.
pub fn bootstrap(before: &[usize], after: &[usize]) -> [f64; 2] {
    let gains: Vec<f64> =
        before.iter().zip(after).map(|(b, a)| f64::from(u8::from(*a == 1)) - f64::from(u8::from(*b == 1))).collect();
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut means: Vec<f64> = (0..10_000)
        .map(|_| (0..gains.len()).map(|_| gains[next() % gains.len()]).sum::<f64>() / gains.len() as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    [means[250], means[9_749]]
}
