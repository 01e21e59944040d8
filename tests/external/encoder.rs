//! all-MiniLM-L6-v2, real weights, beside sentence-transformers; and adapters of ours for an encoder, read by PEFT.

use std::ops::ControlFlow;
use std::path::Path;

use firebrick::core::lora::Adapter;
use firebrick::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::python::{needed, script};
use crate::contract;
use crate::pairs;
use crate::support::{Inner, assert_near, repository};

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

contract! {
    #[ignore = "needs the all-MiniLM-L6-v2 folder"]
    fn minilm_embeddings_equal_sentence_transformers<B>(device) {
        let golden = std::fs::read(repository("tests/goldens/minilm_l6_v2.json")).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let folder = needed("FIREBRICK_MINILM");
        let hash = Sha256::digest(std::fs::read(folder.join("model.safetensors")).unwrap());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, golden["sha256_model_safetensors"].as_str().unwrap(), "other weights");

        let model = EmbeddingModel::<Inner<B>>::load(&folder, &device).unwrap();
        assert_eq!(model.embedder().max_tokens(), 256);
        let texts: Vec<&str> =
            golden["sentences"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let embeddings = model.encode(&texts, Kind::None).unwrap();
        let (mut worst, mut largest) = (1.0f64, 0.0f32);
        for (row, embedding) in embeddings.iter().enumerate() {
            let ids = model.embedder().tokenize(texts[row], Kind::None).unwrap().ids;
            assert_eq!(ids.iter().map(|&id| id as f32).collect::<Vec<_>>(), numbers(&golden["token_ids"][row]));
            let expected = numbers(&golden["embeddings"][row]);
            worst = worst.min(cosine(&embedding.vector, &expected));
            let difference = embedding.vector.iter().zip(&expected).map(|(a, e)| (a - e).abs());
            largest = difference.fold(largest, f32::max);
        }
        println!("smallest cosine {worst:.8}, largest difference {largest:.2e}");
        assert!(worst >= 0.99999 && largest <= 1e-4);
    }
}

contract! {
    #[ignore = "needs the all-MiniLM-L6-v2 folder"]
    fn packed_in_eight_bits_minilm_points_the_same_way<B>(device) {
        let folder = needed("FIREBRICK_MINILM");
        let values = EmbeddingModel::<Inner<B>>::load(&folder, &device).unwrap();
        let format = firebrick::backend::packed::Format::Q8;
        let dtype = format.dtype(firebrick::backend::packed::BLOCK);
        let has_kernel = <Inner<B> as firebrick::KernelBackend>::reads_weights(&device, dtype);
        // Where there is no kernel for the blocks, packing is refused: f16 is as narrow as it gets.
        let policy = if has_kernel { DTypePolicy::Pack(format) } else { DTypePolicy::Auto };
        let packed = EmbeddingModel::<Inner<B>>::load_as(&folder, policy, &device).unwrap();
        let documents = pairs::documents().unwrap();
        let (questions, passages) = pairs::questions(&documents, true, pairs::code);
        let texts = questions.iter().map(|question| question.text.as_str()).chain(passages.iter().map(String::as_str));
        let texts: Vec<&str> = texts.take(400).collect();
        let [expected, found] = [&values, &packed].map(|model| model.encode(&texts, Kind::None).unwrap());
        let cosines = expected.iter().zip(&found).map(|(one, other)| cosine(&one.vector, &other.vector));
        let (worst, sum) = cosines.fold((1.0f64, 0.0), |(worst, sum), next| (worst.min(next), sum + next));
        println!("{} texts: smallest cosine {worst:.6}, mean {:.6}", texts.len(), sum / texts.len() as f64);
        assert!(worst >= 0.999, "{worst}");
    }
}

/// Embeddings of texts, as they are, by PEFT.
fn by_peft(base: &Path, adapter: &Path, texts: &[&str]) -> Vec<f32> {
    let out = tempfile::tempdir().unwrap();
    let (file, answers) = (out.path().join("texts.json"), out.path().join("answers.safetensors"));
    std::fs::write(&file, serde_json::to_vec(&texts).unwrap()).unwrap();
    script("peft_encoder.py", [base, adapter, &file, &answers]);
    let bytes = std::fs::read(&answers).unwrap();
    let answers = SafeTensors::deserialize(&bytes).unwrap();
    let view = answers.tensor("embeddings").unwrap();
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

contract! {
    #[ignore = "needs Python with PEFT"]
    fn our_encoder_adapter_gives_the_same_embeddings_in_peft<B>(device) {
        let base = repository("tests/goldens/bert-tiny");
        let model = EmbeddingModel::<Inner<B>>::load(&base, &device).unwrap();
        for targets in ["query,value", "all-linear", r"encoder\.layer\.[12]\..*\.dense"] {
            let config = LoraConfig { targets: Targets::parse(targets), rslora: true, ..LoraConfig::default() };
            let adapter = Adapter::create(model.model(), &config, 3).unwrap();
            let matrices = adapter.modules().iter().map(|(path, module)| {
                // Other than zero, which would hide every mistake.
                let b = module.a.clone().transpose().slice([0..1, 0..8]).repeat_dim(0, module.b.dims()[0]);
                (path.clone(), module.a.clone(), b)
            });
            let mut adapter = adapter.with_matrices(matrices.collect::<Vec<_>>());
            adapter.set_base(model.fingerprint(), &base.to_string_lossy(), None);
            let out = tempfile::tempdir().unwrap();
            let folder = out.path().join("adapter");
            adapter.save(&folder, Format::Peft).unwrap();
            let sentences = ["how do I sort a list", "Paris is the capital and the largest city of France.", "short"];
            let expected = by_peft(&base, &folder, &sentences);
            let encode = |model: &EmbeddingModel<Inner<B>>| -> Vec<f32> {
                model.encode(&sentences, Kind::None).unwrap().into_iter().flat_map(|e| e.vector).collect()
            };
            let ours = encode(&model.with_adapter(&adapter).unwrap());
            assert_near(&ours, &expected, 1e-4, 0.0, targets);
            assert!(encode(&model).iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.01), "{targets} changes nothing");
        }
    }
}

contract! {
    #[ignore = "needs Python with PEFT, and the all-MiniLM-L6-v2 folder"]
    fn a_fine_tuned_adapter_finds_more_on_held_out_pairs_and_is_the_same_in_peft<B>(device) {
        let folder = needed("FIREBRICK_MINILM");
        let model = EmbeddingModel::<B>::load(&folder, &device).unwrap();
        let base = model.valid();
        let documents = pairs::documents().unwrap();
        let embedder = model.embedder().with_max_tokens(96).unwrap();
        let (questions, passages) = pairs::questions(&documents, false, pairs::code);
        let data = Dataset::from_pairs(pairs::pairs(&questions, &passages, &embedder).unwrap());
        let (measured, passages) = pairs::questions(&documents, true, pairs::code);
        assert!(measured.len() >= 200, "{} pairs", measured.len());
        let trained: Vec<&String> = questions.iter().map(|question| &question.text).collect();
        let shared = measured.iter().filter(|question| trained.contains(&&question.text)).count();
        assert_eq!(shared, 0, "held-out questions that are trained on");

        let lora = LoraConfig { rank: 16, ..LoraConfig::encoder() };
        let adapter = Adapter::create(base.model(), &lora, 0).unwrap();
        let config = TrainConfig { duration: Duration::Steps(40), batch_size: 32, ..TrainConfig::default() };
        let config = config.learning_rate(1e-3);
        let mut trainer = Trainer::contrastive(model.model(), Contrastive::new(embedder), adapter, config).unwrap();
        trainer.run(&data, None, &mut |_| ControlFlow::Continue(())).unwrap();

        let out = tempfile::tempdir().unwrap();
        trainer.adapter().save(out.path(), Format::Peft).unwrap();
        let tuned = base.with_adapter(&base.load_adapter(out.path()).unwrap()).unwrap();
        let before = pairs::ranks(&base, &measured, &passages).unwrap();
        let after = pairs::ranks(&tuned, &measured, &passages).unwrap();
        let [low, high] = pairs::bootstrap(&before, &after);
        let recall = |ranks: &[usize]| Retrieval::from_ranks(ranks).recall_at_1;
        println!(
            "{} pairs: recall@1 {:.3} -> {:.3}, gained between {low:.3} and {high:.3}",
            measured.len(), recall(&before), recall(&after)
        );
        assert!(low > 0.0, "the interval reaches {low}");

        let texts = ["query: use of a moved value", "passage: let x = 5;", "E0382"];
        let ours: Vec<f32> = tuned.encode(&texts, Kind::None).unwrap().into_iter().flat_map(|e| e.vector).collect();
        assert_near(&ours, &by_peft(&folder, out.path(), &texts), 1e-4, 0.0, "PEFT");
    }
}
