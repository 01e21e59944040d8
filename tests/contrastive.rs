//! Encoders learn to find: the loss is InfoNCE, its gradients equal central differences, and nothing frozen is touched.

mod support;
#[path = "support/watched.rs"]
mod watched;

use std::io::Write;
use std::ops::ControlFlow;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use firebrick::core::error::Error;
use firebrick::core::train::data::{BadRows, Pair};
use firebrick::core::train::schedule::{LearningRate, Schedule};
use firebrick::core::train::task::Task;
use firebrick::prelude::*;
use support::{Golden, Inner, assert_near, repository};
use watched::{WEIGHT_GRADIENTS, Watched};

fn model<B: KernelBackend>(policy: DTypePolicy, device: &B::Device) -> EmbeddingModel<B> {
    EmbeddingModel::load_as(repository("tests/goldens/bert-tiny"), policy, device).unwrap()
}

/// Pairs of the golden sentences' tokens, the last one with two hard negatives.
fn some_pairs() -> Vec<Pair> {
    let golden = Golden::open("bert-tiny");
    let ids: Vec<Vec<u32>> = serde_json::from_value(golden.facts["token_ids"].clone()).unwrap();
    let pair = |query: usize, positive: usize, negatives: &[usize]| Pair {
        query: ids[query].clone(),
        positive: ids[positive].clone(),
        negatives: negatives.iter().map(|&at| ids[at].clone()).collect(),
        line: 1,
    };
    vec![pair(0, 1, &[]), pair(2, 3, &[]), pair(4, 5, &[6, 7])]
}

fn random_adapter<B: KernelBackend>(model: &EmbeddingModel<B>, dtype: DType) -> Adapter<B> {
    let config = LoraConfig { rank: 4, targets: Targets::AllLinear, ..LoraConfig::default() };
    let adapter = Adapter::create(model.model(), &config, 1).unwrap();
    let mut state = 12345u32;
    let modules = adapter.modules().iter().map(|(path, module)| {
        let matrix = |values: Vec<f64>, shape: [usize; 2]| {
            let data = TensorData::new(values, shape).convert_dtype(dtype);
            Tensor::<B, 2>::from_data(data, (&module.a.device(), dtype))
        };
        let a = module.a.clone().into_data().iter::<f64>().collect();
        let [out, rank] = module.b.dims();
        // Other than zero, which would hide `A`.
        let b = (0..out * rank).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.2
        });
        (path.clone(), matrix(a, module.a.dims()), matrix(b.collect(), [out, rank]))
    });
    let modules: Vec<_> = modules.collect();
    adapter.with_matrices(modules)
}

fn config(rate: f64, steps: usize) -> TrainConfig {
    TrainConfig {
        learning_rate: LearningRate { peak: rate, schedule: Schedule::Constant, warmup_steps: 0, final_fraction: None },
        batch_size: 3,
        duration: Duration::Steps(steps),
        ..TrainConfig::default()
    }
}

/// Mean InfoNCE of these pairs from their vectors, in plain arithmetic.
fn by_hand<B: KernelBackend>(model: &EmbeddingModel<B>, task: &Contrastive, pairs: &[Pair]) -> f64 {
    let vector = |ids: &Vec<u32>| -> Vec<f64> {
        let tokens = Sequences::whole(&[ids], &model.model().device());
        let vector = task.embedder.vectors(model.model().encode(&tokens), &tokens.segments, None);
        vector.into_data().iter::<f64>().collect()
    };
    let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / task.temperature;
    let queries: Vec<Vec<f64>> = pairs.iter().map(|pair| vector(&pair.query)).collect();
    let own: Vec<Vec<f64>> = pairs.iter().map(|pair| vector(&pair.positive)).collect();
    let hard: Vec<Vec<f64>> = pairs.iter().flat_map(|pair| pair.negatives.iter().map(vector)).collect();
    let loss = |row: usize, scores: Vec<f64>| scores.iter().map(|score| (score - scores[row]).exp()).sum::<f64>().ln();
    let of_queries = (0..pairs.len())
        .map(|row| loss(row, own.iter().chain(&hard).map(|document| cosine(&queries[row], document)).collect()));
    let mut sum: f64 = of_queries.sum();
    if task.symmetric {
        let of_passages =
            (0..pairs.len()).map(|row| loss(row, queries.iter().map(|query| cosine(query, &own[row])).collect()));
        sum = (sum + of_passages.sum::<f64>()) / 2.0;
    }
    sum / pairs.len() as f64
}

/// Nobody ends a validation early.
fn to_the_end(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

contract! {
    fn the_loss_is_info_nce_and_every_option_shows_in_it<B>(device) {
        let plain = model::<Inner<B>>(DTypePolicy::Auto, &device);
        let trained = model::<B>(DTypePolicy::Auto, &device);
        let pairs = some_pairs();
        let mut losses = Vec::new();
        for (temperature, symmetric, negatives) in
            [(0.05, false, true), (0.05, true, true), (0.5, false, true), (0.05, false, false)]
        {
            let task = Contrastive { temperature, symmetric, ..Contrastive::new(plain.embedder().clone()) };
            let mut pairs = pairs.clone();
            pairs.iter_mut().filter(|_| !negatives).for_each(|pair| pair.negatives.clear());
            let expected = by_hand(&plain, &task, &pairs);
            let valid = Task::<B>::evaluate(&task, plain.model(), &Dataset::from_pairs(pairs.clone()), 3, &mut to_the_end).unwrap().unwrap();
            assert!((valid.loss - expected).abs() < 1e-4 * expected.max(1.0), "{} {expected}", valid.loss);
            let adapter = Adapter::create(plain.model(), &LoraConfig::encoder(), 0).unwrap();
            let trainer = Trainer::contrastive(trained.model(), task, adapter, config(1e-3, 1)).unwrap();
            let views: Vec<&Pair> = pairs.iter().collect();
            let (loss, _) = trainer.gradients(&views).unwrap();
            assert!((loss - expected).abs() < 1e-4 * expected.max(1.0), "{loss} {expected}");
            losses.push(loss);
        }
        for (at, loss) in losses.iter().enumerate() {
            assert!(losses[..at].iter().all(|other| (loss - other).abs() > 1e-3), "{losses:?}");
        }
    }
}

contract! {
    fn gradients_of_a_and_b_equal_central_differences_in_f64<B>(device) {
        let double = DTypePolicy::Convert(DType::F64);
        // In f32 where the backend trains in nothing else; the differences are those of the CPU in f64 in any case.
        let (policy, dtype) = if B::has_f64() { (double, DType::F64) } else { (DTypePolicy::Auto, DType::F32) };
        let tolerance = if B::has_f64() { 1e-7 } else { 2e-5 };
        let trained = model::<B>(policy, &device);
        let exact = model::<Flex>(double, &FlexDevice);
        let pairs = some_pairs();
        let views: Vec<&Pair> = pairs.iter().collect();
        let task = Contrastive { symmetric: true, temperature: 0.2, ..Contrastive::new(exact.embedder().clone()) };
        let adapter = random_adapter(&trained.valid(), dtype);
        let trainer = Trainer::contrastive(trained.model(), task.clone(), adapter, config(1e-3, 1)).unwrap();
        let (_, gradients) = trainer.gradients(&views).unwrap();
        let adapter = random_adapter(&exact, DType::F64);
        let data = Dataset::from_pairs(pairs.clone());
        let loss = |path: &str, side: usize, entry: usize, by: f64| {
            let modules = adapter.modules().iter().map(|(name, module)| {
                let mut matrices = [module.a.clone(), module.b.clone()].map(|matrix| {
                    let shape = matrix.dims();
                    (matrix.into_data().iter::<f64>().collect::<Vec<f64>>(), shape)
                });
                if name == path {
                    matrices[side].0[entry] += by;
                }
                let [a, b] = matrices.map(|(values, shape)| {
                    Tensor::<Flex, 2>::from_data(TensorData::new(values, shape), (&FlexDevice, DType::F64))
                });
                (name.clone(), a, b)
            });
            let modules: Vec<_> = modules.collect();
            let handle = adapter.with_matrices(modules).attach(exact.model()).unwrap();
            Task::<Autodiff<Flex>>::evaluate(&task, &*handle, &data, 3, &mut to_the_end).unwrap().unwrap().loss
        };
        let (step, mut checked) = (1e-5, 0);
        for (path, matrices) in &gradients {
            for (side, gradient) in matrices.iter().enumerate() {
                let gradient: Vec<f64> = gradient.clone().into_data().iter::<f64>().collect();
                assert!(gradient.iter().any(|value| *value != 0.0), "{path}: all zero");
                for entry in 0..4 {
                    let at = (entry * 7919 + 13) % gradient.len();
                    let numeric = (loss(path, side, at, step) - loss(path, side, at, -step)) / (2.0 * step);
                    let error = (gradient[at] - numeric).abs();
                    let allowed = tolerance + 1e2 * tolerance * numeric.abs();
                    assert!(error < allowed, "{path} {side}[{at}]: {} not {numeric}", gradient[at]);
                    checked += 1;
                }
            }
        }
        assert_eq!(checked, 18 * 2 * 4);
    }
}

contract! {
    fn a_few_steps_find_every_passage_and_the_adapter_keeps_it<B>(device) {
        let trained = model::<B>(DTypePolicy::Auto, &device);
        let base = trained.valid();
        let data = Dataset::from_pairs(some_pairs());
        let config = TrainConfig { eval_every: Some(10), ..config(1e-2, 30) };
        let lora = LoraConfig { targets: Targets::AllLinear, dropout: 0.05, ..LoraConfig::encoder() };
        let adapter = Adapter::create(base.model(), &lora, 0).unwrap();
        let task = Contrastive::new(base.embedder().clone());
        let mut trainer = Trainer::contrastive(trained.model(), task.clone(), adapter, config).unwrap();
        let mut found = Vec::new();
        trainer.run(&data, Some(&data), &mut |event| {
            if let Event::Evaluated { valid_loss, retrieval, .. } = event {
                found.push((valid_loss, retrieval.unwrap()));
            }
            ControlFlow::Continue(())
        }).unwrap();
        assert_eq!(found.len(), 4);
        let [(before, _), .., (after, last)] = found[..] else { panic!() };
        println!("loss {before:.3} -> {after:.3}, {last:?}");
        assert!(after < 0.2 * before && last.recall_at_1 == 1.0 && last.reciprocal_rank == 1.0, "{before} {after} {last:?}");

        let folder = tempfile::tempdir().unwrap();
        trainer.adapter().save(folder.path(), Format::Peft).unwrap();
        let loaded = base.load_adapter(folder.path()).unwrap();
        let encode = |model: &EmbeddingModel<Inner<B>>| -> Vec<f32> {
            model.encode(&["short", "capital of France"], Kind::None).unwrap().into_iter().flat_map(|e| e.vector).collect()
        };
        let tuned = encode(&base.with_adapter(&loaded).unwrap());
        assert_eq!(tuned, encode(&base.with_adapter(trainer.adapter()).unwrap()));
        assert_near(&encode(&base.merged(&loaded).unwrap()), &tuned, 1e-4, 0.0, "merged");
        assert!(encode(&base).iter().zip(&tuned).any(|(a, b)| (a - b).abs() > 1e-3));
        assert_eq!(loaded.config()["task_type"], "FEATURE_EXTRACTION");
    }
}

contract! {
    fn a_rest_too_small_to_learn_from_joins_the_batch_before<B>(device) {
        let trained = model::<B>(DTypePolicy::Auto, &device);
        let base = trained.valid();
        let mut pairs = some_pairs();
        pairs.extend(some_pairs().into_iter().rev().take(2).map(|pair| Pair { query: pair.positive, positive: pair.query, ..pair }));
        let adapter = Adapter::create(base.model(), &LoraConfig::encoder(), 0).unwrap();
        let task = Contrastive::new(base.embedder().clone());
        // Five rows in passes of two: two and three. An epoch's last step has one row of its own, and takes another.
        let config = TrainConfig { batch_size: 2, gradient_accumulation: 2, duration: Duration::Epochs(1), ..config(1e-3, 1) };
        let mut trainer = Trainer::contrastive(trained.model(), task.clone(), adapter.clone(), config).unwrap();
        let views: Vec<&Pair> = pairs.iter().collect();
        assert!(trainer.gradients(&views).unwrap().0.is_finite());
        let mut tokens = Vec::new();
        trainer.run(&Dataset::from_pairs(pairs.clone()), None, &mut |event| {
            if let Event::Step(step) = event { tokens.push(step.tokens) }
            ControlFlow::Continue(())
        }).unwrap();
        assert_eq!(tokens.len(), 2);

        let alone = TrainConfig { batch_size: 1, ..TrainConfig::default() };
        let refused = Trainer::contrastive(trained.model(), task.clone(), adapter.clone(), alone).err().unwrap();
        assert!(matches!(refused, Error::OutOfBounds { name: "batch_size", .. }), "{refused}");
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let task = Contrastive { temperature, ..task.clone() };
            let refused = Trainer::contrastive(trained.model(), task, adapter.clone(), TrainConfig::default()).err().unwrap();
            assert!(matches!(refused, Error::OutOfBounds { name: "temperature", .. }), "{refused}");
        }
    }
}

#[test]
fn only_the_adapters_matrices_receive_gradients() {
    let trained = model::<Autodiff<Watched>>(DTypePolicy::Auto, &Default::default());
    let lora = LoraConfig { rank: 3, targets: Targets::AllLinear, ..LoraConfig::default() };
    let adapter = Adapter::create(trained.valid().model(), &lora, 0).unwrap();
    let mut expected: Vec<Vec<usize>> = Vec::new();
    for module in adapter.modules().values() {
        expected.extend([module.a.dims().to_vec(), module.b.dims().to_vec()]);
    }
    let task = Contrastive::new(trained.embedder().clone());
    let mut trainer = Trainer::contrastive(trained.model(), task, adapter, config(1e-3, 1)).unwrap();
    let pairs = some_pairs();
    WEIGHT_GRADIENTS.lock().unwrap().clear();
    trainer.step(&pairs.iter().collect::<Vec<_>>(), 1e-3).unwrap();
    let mut seen: Vec<Vec<usize>> = WEIGHT_GRADIENTS.lock().unwrap().drain(..).map(|(_, shape)| shape).collect();
    expected.sort();
    seen.sort();
    assert_eq!(seen, expected);
}

#[test]
fn rows_are_read_with_the_prefix_of_their_kind_and_bad_ones_are_named() {
    let model = model::<Inner<Autodiff<Watched>>>(DTypePolicy::Auto, &Default::default());
    let embedder = model.embedder();
    let load = |rows: &str, bad_rows| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(rows.as_bytes()).unwrap();
        Dataset::load_pairs(file.path(), embedder, bad_rows)
    };
    let good = r#"{"query": "short", "positive": "capital of France", "negatives": ["sort", "list"], "id": 4}"#;
    let data = load(&format!("\n{good}\n"), BadRows::Fail).unwrap();
    let [pair] = data.examples() else { panic!() };
    assert_eq!(pair.query, embedder.tokenize("short", Kind::Query).unwrap().ids);
    assert_eq!((pair.negatives.len(), pair.line), (2, 2));
    for (bad, named) in [
        (r#"{"query": "a"}"#, "`positive`"),
        (r#"{"positive": "a"}"#, "`query`"),
        (r#"{"query": 3, "positive": "a"}"#, "`query`"),
        (r#"{"query": " ", "positive": "a"}"#, "`query` is empty"),
        (r#"{"query": "a", "positive": "b", "negatives": "c"}"#, "`negatives`"),
        (r#"{"query": "a", "positive": "b", "negatives": ["c", ""]}"#, "`negatives[1]`"),
        (r#"{"query": "a", "positive": "b", "negatives": [3]}"#, "`negatives[0]`"),
        ("[1]", "JSON object"),
        ("{", "JSON"),
    ] {
        let rows = format!("{good}\n{bad}\n");
        let error = load(&rows, BadRows::Fail).unwrap_err();
        assert!(matches!(&error, Error::BadRow { line: 2, .. }) && error.to_string().contains(named), "{bad}: {error}");
        let data = load(&rows, BadRows::Skip).unwrap();
        assert_eq!((data.examples().len(), data.report().skipped.len()), (1, 1));
    }
    assert!(matches!(load("", BadRows::Skip), Err(Error::Data { .. })));
    let long = format!(r#"{{"query": "short", "positive": "{}"}}"#, "word ".repeat(500));
    let data = load(&long, BadRows::Fail).unwrap();
    assert_eq!((data.report().truncated, data.examples()[0].positive.len()), (1, 64));
}
