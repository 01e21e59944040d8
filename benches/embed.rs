//! Texts to vectors with E5-small-v2's shape and random weights, on every backend built in: distinct texts, all of 32 tokens or of mixed
//! lengths from 4 to 256. Tokenizing, pooling and normalising are inside the timed region, and the vectors are read back in it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use firebrick::core::embed::EmbedConfig;
use firebrick::models::load_encoder;
use firebrick::prelude::*;
use serde_json::json;

struct Embed<'a>(&'a mut Criterion, BackendName);

/// Distinct texts of these lengths in tokens, as far as whole words allow.
fn texts(embedder: &Embedder, lengths: impl Iterator<Item = usize>) -> Vec<String> {
    const WORDS: [&str; 12] = [
        "sort", "list", "python", "capital", "short", "largest", "sentence", "padding", "rows", "batch", "city", "own",
    ];
    let text = |(row, length): (usize, usize)| {
        let mut text = row.to_string();
        for at in 0.. {
            let longer = format!("{text} {}", WORDS[(row * 7 + at * 5 + at * at) % WORDS.len()]);
            if embedder.tokenize(&longer, Kind::None).expect("a text").ids.len() > length {
                break;
            }
            text = longer;
        }
        text
    };
    lengths.enumerate().map(text).collect()
}

impl Job for Embed<'_> {
    type Output = ();

    fn run<B: TrainBackend>(self, device: B::Device) {
        let Self(criterion, name) = self;
        let config = json!({
            "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536,
            "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2,
        });
        let checkpoint = Checkpoint::synthetic(config, 1);
        let model = load_encoder::<B::InnerBackend>(&checkpoint, DTypePolicy::Auto, &device).expect("the shape");
        // A tokenizer of WordPiece with a small vocabulary: the ids are within the larger one.
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/bert-tiny");
        let tokenizer = Tokenizer::from_folder(folder.as_ref()).expect("the tokenizer");
        let embedder = Embedder::new(tokenizer, EmbedConfig::default(), model.facts()).expect("an embedder");
        let mut group = criterion.benchmark_group(format!("embed/{name}"));
        group.sample_size(10);
        for count in [1usize, 2, 5, 10, 20, 50, 100] {
            let mixed = (0..count).map(|row| 4 + (row * 97 + 60) % 253);
            for (what, texts) in [
                ("32 tokens", texts(&embedder, std::iter::repeat_n(32, count))),
                ("4 to 256 tokens", texts(&embedder, mixed)),
            ] {
                let tokens = |text: &String| embedder.tokenize(text, Kind::None).expect("a text").ids.len();
                group.throughput(Throughput::Elements(texts.iter().map(tokens).sum::<usize>() as u64));
                group.bench_function(format!("{count} texts, {what}"), |bencher| {
                    let options = EmbedOptions::of(Kind::None);
                    bencher.iter(|| embedder.embed(&*model, &texts, &options).expect("vectors"));
                });
            }
        }
        group.finish();
    }
}

fn embed(criterion: &mut Criterion) {
    for backend in built() {
        dispatch(backend, Embed(criterion, backend)).expect("the backend is built in");
    }
}

criterion_group!(benches, embed);
criterion_main!(benches);
