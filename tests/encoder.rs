//! Encoders equal transformers and sentence-transformers, and a text's vector is the same in any company.

mod support;

use std::path::Path;

use firebrick::core::embed::{EmbedConfig, Pooling};
use firebrick::core::error::Error;
use firebrick::core::lora::linear_shapes;
use firebrick::models::load_encoder;
use firebrick::prelude::*;
use serde_json::{Value, json};
use support::{Golden, Inner, assert_near, floats, renamed, repository};

fn encoder<B: KernelBackend>(folder: &Path, device: &B::Device) -> Box<dyn Encoder<B>> {
    load_encoder::<B>(&Checkpoint::open(folder).unwrap(), DTypePolicy::Auto, device).unwrap()
}

fn tiny<B: KernelBackend>(device: &B::Device) -> (Golden, EmbeddingModel<B>) {
    let golden = Golden::open("bert-tiny");
    let model = EmbeddingModel::load(&golden.folder, device).unwrap();
    (golden, model)
}

fn sentences(golden: &Golden) -> Vec<String> {
    golden.facts["sentences"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The unpadded ids of a padded batch, and the hidden states at real tokens, row after row.
fn real(golden: &Golden, side: &str, tensor: &str) -> (Vec<Vec<u32>>, Vec<f32>) {
    let mask = golden.rows(&format!("{side}attention_mask"));
    let ids = golden.rows(&format!("{side}input_ids"));
    let (hidden, shape) = golden.floats(&format!("{side}{tensor}"));
    let kept =
        |row: &Vec<u32>, mask: &Vec<u32>| row.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect();
    let ids = ids.iter().zip(&mask).map(|(row, mask)| kept(row, mask)).collect();
    let states = hidden.chunks(*shape.last().unwrap()).zip(mask.concat()).filter(|(_, m)| *m == 1);
    (ids, states.flat_map(|(state, _)| state.to_vec()).collect())
}

fn vectors(embeddings: &[Embedding]) -> Vec<f32> {
    embeddings.iter().flat_map(|embedding| embedding.vector.iter().copied()).collect()
}

#[track_caller]
fn assert_same_direction(actual: &[f32], expected: &[f32], width: usize, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (row, (a, e)) in actual.chunks(width).zip(expected.chunks(width)).enumerate() {
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let cosine = dot(a, e) / (dot(a, a) * dot(e, e)).sqrt();
        assert!(cosine >= 0.99999, "{what}: row {row} has the cosine {cosine}");
    }
    assert_near(actual, expected, 1e-4, 0.0, what);
}

contract! {
    fn hidden_states_equal_transformers_on_padded_rows<B>(device) {
        let golden = Golden::open("bert-tiny");
        let model = encoder::<Inner<B>>(&golden.folder, &device);
        // Only on the right: transformers gives the tokens behind padding on the left other positions than those of the text alone.
        let (ids, expected) = real(&golden, "right_pad.", "last_hidden");
        assert!(ids.iter().any(|row| row.len() == 3) && ids.iter().any(|row| row.len() == 32));
        assert_near(&floats(model.encode(&Sequences::whole(&ids, &device))), &expected, 1e-4, 0.0, "together");
        let alone = ids.iter().flat_map(|row| floats(model.encode(&Sequences::whole(&[row], &device))));
        assert_near(&alone.collect::<Vec<_>>(), &expected, 1e-4, 0.0, "alone");
    }
}

contract! {
    fn every_option_of_the_config_gives_the_hidden_states_of_transformers<B>(device) {
        let mut compared = 0;
        for entry in std::fs::read_dir(repository("tests/goldens/encoders")).unwrap() {
            let folder = entry.unwrap().path();
            let golden = Golden::tensors(&folder);
            let (ids, expected) = real(&golden, "", "hidden");
            let model = encoder::<Inner<B>>(&folder, &device);
            let name = folder.file_name().unwrap().to_string_lossy();
            assert_near(&floats(model.encode(&Sequences::whole(&ids, &device))), &expected, 1e-4, 1e-4, &name);
            compared += 1;
        }
        assert_eq!(compared, 5);
    }
}

contract! {
    fn embeddings_equal_sentence_transformers<B>(device) {
        let (golden, model) = tiny::<Inner<B>>(&device);
        let texts = sentences(&golden);
        let embeddings = model.encode(&texts, Kind::Passage).unwrap();
        let (expected, shape) = golden.floats("sentence_transformers.embeddings");
        assert_same_direction(&vectors(&embeddings), &expected, shape[1], "sentence-transformers");
        for (text, ids) in texts.iter().zip(golden.facts["token_ids"].as_array().unwrap()) {
            let ours = model.embedder().tokenize(text, Kind::None).unwrap();
            assert_eq!(json!(ours.ids), *ids, "{text}");
            assert!(!ours.truncated);
        }
    }
}

/// bert-tiny's folder with other files beside the weights.
fn with_files(files: &[(&str, Value)]) -> tempfile::TempDir {
    let (from, folder) = (repository("tests/goldens/bert-tiny"), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors", "tokenizer.json", "modules.json"] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    std::fs::copy(from.join("1_Pooling/config.json"), folder.path().join("1_Pooling/config.json")).unwrap();
    for (name, value) in files {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

contract! {
    fn pooling_is_what_the_files_say<B>(device) {
        let (golden, mean) = tiny::<Inner<B>>(&device);
        let texts = sentences(&golden);
        let load = |pooling: &str| {
            let folder = with_files(&[("1_Pooling/config.json", json!({"pooling_mode": pooling}))]);
            EmbeddingModel::<Inner<B>>::load(folder.path(), &device).unwrap()
        };
        let cls = vectors(&load("cls").encode(&texts, Kind::None).unwrap());
        assert_same_direction(&cls, &golden.floats("right_pad.cls_normalised").0, 48, "cls");
        let mean = vectors(&mean.encode(&texts, Kind::None).unwrap());
        let others = Pooling::ALL.map(|pooling| vectors(&load(pooling.name()).encode(&texts, Kind::None).unwrap()));
        for (pooling, other) in Pooling::ALL.iter().zip(&others) {
            // To unit length, the root of the length is the same as the length.
            let same = matches!(pooling, Pooling::Mean | Pooling::MeanSqrtLength);
            let near = mean.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-5);
            assert_eq!(near, same, "{pooling:?}");
        }
    }
}

contract! {
    fn a_text_has_one_vector_in_any_company<B>(device) {
        let (golden, model) = tiny::<Inner<B>>(&device);
        let mut texts = sentences(&golden);
        texts.extend((0..40).map(|i| "word and number ".repeat(i % 9 + 1) + &i.to_string()));
        let alone: Vec<f32> =
            texts.iter().flat_map(|text| vectors(&model.encode(&[text], Kind::None).unwrap())).collect();
        for batch_tokens in [1, 50, 333, 16_384] {
            let options = EmbedOptions { batch_tokens, ..EmbedOptions::of(Kind::None) };
            let together = vectors(&model.encode_with(&texts, &options).unwrap());
            assert_near(&together, &alone, 1e-5, 0.0, &format!("{batch_tokens} tokens at a time"));
        }
        let mut reversed: Vec<Vec<f32>> = texts
            .iter()
            .rev()
            .map(|text| text.as_str())
            .collect::<Vec<_>>()
            .chunks(texts.len())
            .flat_map(|texts| model.encode(texts, Kind::None).unwrap())
            .map(|embedding| embedding.vector)
            .collect();
        reversed.reverse();
        assert_near(&reversed.concat(), &alone, 1e-5, 0.0, "reversed");
    }
}

contract! {
    fn prefixes_of_e5_are_added_by_kind_and_change_the_vector<B>(device) {
        let config = repository("tests/goldens/bert-tiny/config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
        config["_name_or_path"] = "intfloat/e5-tiny".into();
        let folder = with_files(&[("config.json", config)]);
        let model = EmbeddingModel::<Inner<B>>::load(folder.path(), &device).unwrap();
        let encode = |text: &str, kind| vectors(&model.encode(&[text], kind).unwrap());
        let query = encode("capital of France", Kind::Query);
        assert_eq!(query, encode("query: capital of France", Kind::None));
        assert_eq!(encode("capital", Kind::Passage), encode("passage: capital", Kind::None));
        assert_ne!(query, encode("capital of France", Kind::Passage));
        assert_ne!(query, encode("capital of France", Kind::None));
    }
}

contract! {
    fn longer_texts_are_cut_off_and_say_so<B>(device) {
        let (_, model) = tiny::<Inner<B>>(&device);
        let long = "sort list python ".repeat(5000);
        let embeddings = model.encode(&["sort", long.as_str(), "list"], Kind::None).unwrap();
        let told: Vec<(usize, bool)> = embeddings.iter().map(|e| (e.tokens, e.truncated)).collect();
        assert!(!told[0].1 && told[1] == (64, true) && !told[2].1, "{told:?}");
        let embedder = model.embedder();
        let tokens = embedder.tokenize(&long, Kind::None).unwrap();
        let sep = embedder.tokenizer().token_id("[SEP]").unwrap();
        assert_eq!((tokens.ids.len(), *tokens.ids.last().unwrap()), (64, sep));
        // The end that is cut off does not matter, and the last special token stays.
        let same = embedder.tokenize(&"sort list python ".repeat(60), Kind::None).unwrap();
        assert_eq!(tokens, same);
        let shorter = embedder.with_max_tokens(7).unwrap().tokenize(&long, Kind::None).unwrap();
        assert_eq!((shorter.ids.len(), shorter.truncated), (7, true));
        assert_eq!(shorter.ids[..6], tokens.ids[..6]);
        for bad in [0, 2, 65] {
            assert!(matches!(embedder.with_max_tokens(bad), Err(Error::OutOfBounds { name: "max_tokens", .. })));
        }
    }
}

contract! {
    fn fewer_dimensions_are_the_first_ones_to_unit_length<B>(device) {
        let (golden, model) = tiny::<Inner<B>>(&device);
        let texts = sentences(&golden);
        let whole = model.encode(&texts, Kind::None).unwrap();
        let cut = model.encode_with(&texts, &EmbedOptions::of(Kind::None).dimensions(10)).unwrap();
        for (whole, cut) in whole.iter().zip(&cut) {
            let length = whole.vector[..10].iter().map(|x| x * x).sum::<f32>().sqrt();
            let expected: Vec<f32> = whole.vector[..10].iter().map(|x| x / length).collect();
            assert_near(&cut.vector, &expected, 1e-6, 0.0, "10 dimensions");
        }
        for bad in [0, 49] {
            let refused = model.encode_with(&texts, &EmbedOptions::default().dimensions(bad));
            assert!(matches!(refused, Err(Error::OutOfBounds { name: "dimensions", .. })));
        }
        let refused = model.encode_with(&texts, &EmbedOptions { batch_tokens: 0, ..EmbedOptions::default() });
        assert!(matches!(refused, Err(Error::OutOfBounds { name: "batch_tokens", .. })));
    }
}

contract! {
    fn strange_texts_have_a_vector_or_an_error_that_names_them<B>(device) {
        let (_, model) = tiny::<Inner<B>>(&device);
        let words = "a ".repeat(5 << 20);
        let texts = ["", " \t\n\u{3000}", "\0", "a\0b", "\u{feff}", "🦀🦀🦀", &"é".repeat(70_000), words.as_str()];
        let begun = std::time::Instant::now();
        for embedding in model.encode(&texts, Kind::None).unwrap() {
            let length: f32 = embedding.vector.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5 && embedding.tokens >= 2, "{embedding:?}");
        }
        // 10 MB of words cost what their first few do; the bound is far above that, and far below tokenizing them all.
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
        let ten_megabytes = "a".repeat(10 << 20);
        let error = model.encode(&["fine", &ten_megabytes], Kind::None).unwrap_err();
        assert!(matches!(&error, Error::Text { row: 1, source } if matches!(**source, Error::Tokenizer(_))), "{error}");
        assert!(model.encode::<&str>(&[], Kind::None).unwrap().is_empty());
    }
}

#[test]
fn a_text_without_a_token_is_an_error_where_no_special_token_saves_it() {
    let tokenizer = Tokenizer::from_folder(&repository("examples/tiny/rust-tiny")).unwrap();
    let facts = firebrick::core::model::EncoderFacts { layers: 1, hidden: 4, vocabulary: 4096, context: 8 };
    let embedder = Embedder::new(tokenizer.clone(), EmbedConfig::default(), facts).unwrap();
    assert!(matches!(embedder.tokenize("", Kind::None), Err(Error::EmptyText)));
    assert_eq!(embedder.tokenize("let", Kind::None).unwrap().ids, tokenizer.encode("let", true).unwrap());
    let facts = firebrick::core::model::EncoderFacts { vocabulary: 10, ..facts };
    let embedder = Embedder::new(tokenizer, EmbedConfig::default(), facts).unwrap();
    assert!(matches!(embedder.tokenize("borrow", Kind::None), Err(Error::UnknownToken { vocabulary: 10, .. })));
}

contract! {
    fn an_adapter_of_peft_gives_its_embeddings_attached_and_merged<B>(device) {
        let (golden, model) = tiny::<Inner<B>>(&device);
        let texts = sentences(&golden);
        let folder = golden.folder.join("lora_all");
        let (expected, shape) = Golden::tensors(&folder).floats("embeddings");
        let adapter = model.load_adapter(&folder).unwrap();
        assert_eq!(adapter.modules().len(), 18);
        let plain = vectors(&model.encode(&texts, Kind::None).unwrap());
        assert!(plain.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.01), "the adapter changes nothing");
        for handle in [model.with_adapter(&adapter).unwrap(), model.merged(&adapter).unwrap()] {
            assert_same_direction(&vectors(&handle.encode(&texts, Kind::None).unwrap()), &expected, shape[1], "PEFT");
        }
        assert_eq!(plain, vectors(&model.encode(&texts, Kind::None).unwrap()), "the base changed");
        let again = tempfile::tempdir().unwrap();
        adapter.save(again.path(), Format::Peft).unwrap();
        let read = |folder: &Path| std::fs::read(folder.join("adapter_config.json")).unwrap();
        let parse = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        assert_eq!(parse(read(again.path())), parse(read(&folder)));
    }
}

contract! {
    fn linears_have_the_paths_that_peft_names<B>(device) {
        for folder in ["tests/goldens/bert-tiny", "tests/goldens/encoders/bert-masked-lm"] {
            let model = encoder::<Inner<B>>(&repository(folder), &device);
            let shapes = linear_shapes(&*model);
            assert_eq!(shapes.len() % 6, 0);
            assert_eq!(shapes[0].0, "encoder.layer.0.attention.self.query");
            assert_eq!(shapes.last().unwrap().0.rsplit_once("layer.").unwrap().1[2..], *"output.dense");
        }
    }
}

contract! {
    fn names_of_old_checkpoints_and_of_those_with_a_head_are_read<B>(device) {
        let (golden, model) = tiny::<Inner<B>>(&device);
        let old = renamed(&golden.folder, |name| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            format!("bert.{name}")
        });
        let old = EmbeddingModel::<Inner<B>>::load(old.path(), &device).unwrap();
        let texts = sentences(&golden);
        assert_eq!(vectors(&old.encode(&texts, Kind::None).unwrap()), vectors(&model.encode(&texts, Kind::None).unwrap()));
    }
}

contract! {
    fn what_is_no_encoder_or_not_implemented_is_refused_by_name<B>(device) {
        let refusal = |folder: &Path| EmbeddingModel::<Inner<B>>::load(folder, &device).err().unwrap().to_string();
        let decoder = refusal(&repository("tests/goldens/qwen2-tiny"));
        assert!(decoder.contains("qwen2") && decoder.contains("decoder"), "{decoder}");
        let encoder = LanguageModel::<Inner<B>>::load(repository("tests/goldens/bert-tiny"), &device);
        let encoder = encoder.err().unwrap().to_string();
        assert!(encoder.contains("bert") && encoder.contains("embeds"), "{encoder}");
        let config = std::fs::read(repository("tests/goldens/bert-tiny/config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        for (key, value) in [
            ("hidden_act", json!("gelu_new")),
            ("hidden_act", json!("relu")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
            ("add_cross_attention", json!(true)),
            ("embedding_size", json!(16)),
            ("quantization_config", json!({})),
            ("rope_theta", json!(10000)),
            ("layer_norm_eps", json!("small")),
            ("layer_norm_eps", json!(-1)),
            ("num_attention_heads", json!(5)),
            ("num_attention_heads", json!(0)),
            ("num_hidden_layers", json!(1_000_000_000)),
            ("max_position_embeddings", json!(0)),
            ("vocab_size", json!(-1)),
            ("intermediate_size", json!(null)),
            ("type_vocab_size", json!(1.5)),
        ] {
            let mut changed = config.clone();
            changed[key] = value.clone();
            let error = refusal(with_files(&[("config.json", changed)]).path());
            assert!(error.contains(key), "{key} = {value}: {error}");
        }
        let mut changed = config.clone();
        changed["model_type"] = "xlm-roberta".into();
        changed["pad_token_id"] = 63.into();
        let error = refusal(with_files(&[("config.json", changed)]).path());
        assert!(error.contains("max_position_embeddings"), "{error}");
        let error = refusal(with_files(&[("1_Pooling/config.json", json!({"pooling_mode": "median"}))]).path());
        assert!(error.contains("median"), "{error}");
    }
}

#[test]
fn a_model_serves_many_threads() {
    fn is_shared<T: Send + Sync>() {}
    #[allow(dead_code)]
    fn every_backend<B: TrainBackend>() {
        is_shared::<EmbeddingModel<B>>();
        is_shared::<Embedder>();
    }
}
