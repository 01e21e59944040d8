//! Training that takes less memory learns the same: layer by layer, and with rows packed by their tokens.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use firebrick::core::error::Error;
use firebrick::core::train::data::{Example, Pair};
use firebrick::prelude::*;
use support::{DECODERS, Golden, Inner, assert_near, floats, random_adapter, repository};

/// Rows of 3 to 13 tokens, of which the first counts from its middle.
fn rows(count: u32) -> Vec<Example> {
    let row = |row: u32| {
        let length = 3 + row * 5 % 11;
        let tokens: Vec<u32> = (0..length).map(|at| (row * 37 + at * 11) % 500).collect();
        let weight = |at: u32| f32::from(u8::from(at > 0 && (row > 0 || at > length / 2)));
        Example { weights: (0..length).map(weight).collect(), tokens, line: row as usize + 1 }
    };
    (0..count).map(row).collect()
}

fn lora(targets: &str, dropout: f64) -> LoraConfig {
    LoraConfig { rank: 4, targets: Targets::parse(targets), dropout, ..LoraConfig::default() }
}

type Read = (f64, BTreeMap<String, [Vec<f32>; 2]>);

fn read<B: TrainBackend>((loss, gradients): (f64, firebrick::core::train::run::Gradients<B>)) -> Read {
    (loss, gradients.into_iter().map(|(path, matrices)| (path, matrices.map(floats))).collect())
}

#[track_caller]
fn assert_same(found: &Read, expected: &Read, what: &str) {
    assert!((found.0 - expected.0).abs() < 1e-5, "{what}: loss {} not {}", found.0, expected.0);
    assert_eq!(found.1.len(), expected.1.len());
    for (path, [d_a, d_b]) in &expected.1 {
        assert!(d_a.iter().chain(d_b).any(|value| *value != 0.0), "{what} {path}: all zero");
        assert_near(&found.1[path][0], d_a, 1e-5, 1e-5, &format!("{what} {path} A"));
        assert_near(&found.1[path][1], d_b, 1e-5, 1e-5, &format!("{what} {path} B"));
    }
}

fn gradients_of<B: TrainBackend>(
    model: &dyn CausalLm<B>,
    adapter: &Adapter<Inner<B>>,
    rows: &[Example],
    config: TrainConfig,
) -> Read {
    let trainer = Trainer::new(model, adapter.clone(), config).unwrap();
    read::<B>(trainer.gradients(&rows.iter().collect::<Vec<_>>()).unwrap())
}

contract! {
    fn layer_by_layer_a_decoder_has_the_same_gradients<B>(device) {
        for name in DECODERS {
            let model = Golden::open(name).load::<B>(&device);
            // Everything, some, and late layers alone; with dropout; several rows in a pass and several passes.
            for (targets, dropout, batch_size) in
                [("all-linear", 0.0, 5), ("q_proj,v_proj", 0.3, 2), (r".*layers\.1\..*(k|down)_proj", 0.0, 2)]
            {
                let adapter = random_adapter(&*model.valid(), &lora(targets, dropout), 0.2);
                let run = |gradient_checkpointing| {
                    let config = TrainConfig { batch_size, gradient_checkpointing, ..TrainConfig::default() };
                    gradients_of(&*model, &adapter, &rows(5), config)
                };
                assert_same(&run(true), &run(false), &format!("{name} {targets}"));
            }
        }
    }
}

contract! {
    fn layer_by_layer_an_encoder_has_the_same_gradients<B>(device) {
        let folder = repository("tests/goldens/bert-tiny");
        let model = EmbeddingModel::<B>::load(&folder, &device).unwrap();
        let pair = |row: u32| Pair {
            query: (0..4 + row).map(|at| 5 + row * 31 + at).collect(),
            positive: (0..9 - row).map(|at| 7 + row * 17 + at * 3).collect(),
            negatives: vec![vec![9 + row, 20, 31]; row as usize % 2],
            line: 1,
        };
        let pairs: Vec<Pair> = (0..4).map(pair).collect();
        for (targets, dropout) in [("all-linear", 0.0), ("query,value", 0.3), (r".*layer\.1\..*dense", 0.0)] {
            let adapter = random_adapter(model.valid().model(), &lora(targets, dropout), 0.2);
            let run = |gradient_checkpointing| {
                let task = Contrastive { symmetric: true, ..Contrastive::new(model.embedder().clone()) };
                let config = TrainConfig { batch_size: 2, gradient_checkpointing, ..TrainConfig::default() };
                let trainer = Trainer::contrastive(model.model(), task, adapter.clone(), config).unwrap();
                read::<B>(trainer.gradients(&pairs.iter().collect::<Vec<_>>()).unwrap())
            };
            assert_same(&run(true), &run(false), targets);
        }
    }
}

contract! {
    fn packed_rows_have_the_same_gradients<B>(device) {
        for name in DECODERS {
            let model = Golden::open(name).load::<B>(&device);
            let adapter = random_adapter(&*model.valid(), &lora("all-linear", 0.0), 0.2);
            let run = |batch_size, pack, gradient_checkpointing| {
                let config = TrainConfig { batch_size, pack, gradient_checkpointing, ..TrainConfig::default() };
                gradients_of(&*model, &adapter, &rows(9), config)
            };
            let plain = run(1, None, false);
            assert_same(&run(1, Some(20), false), &plain, name);
            assert_same(&run(2, Some(20), true), &plain, name);
        }
    }
}

contract! {
    fn packing_takes_as_many_rows_as_fit_and_each_once<B>(device) {
        let model = Golden::open("qwen2-tiny").load::<B>(&device);
        let rows = rows(30);
        let run = |pack| {
            let adapter = Adapter::create(&*model.valid(), &lora("q_proj", 0.0), 0).unwrap();
            let config = TrainConfig { batch_size: 2, pack, duration: Duration::Epochs(2), ..TrainConfig::default() };
            let mut trainer = Trainer::new(&*model, adapter, config).unwrap();
            let total = trainer.total_steps(&rows);
            let mut tokens = Vec::new();
            trainer.run(&Dataset::from_examples(rows.clone()), None, &mut |event| {
                if let Event::Step(step) = event { tokens.push(step.tokens) }
                ControlFlow::Continue(())
            }).unwrap();
            assert_eq!(tokens.len(), total);
            tokens
        };
        let (plain, packed) = (run(None), run(Some(40)));
        assert_eq!(packed.iter().sum::<usize>(), plain.iter().sum::<usize>());
        assert!(packed.len() * 3 < plain.len(), "{} and {} steps", packed.len(), plain.len());
        assert!(packed.iter().all(|&tokens| tokens <= 80));
        assert_eq!(packed, run(Some(40)));
    }
}

contract! {
    fn pairs_are_not_packed<B>(device) {
        let folder = repository("tests/goldens/bert-tiny");
        let model = EmbeddingModel::<B>::load(&folder, &device).unwrap();
        let adapter = Adapter::create(model.valid().model(), &LoraConfig::encoder(), 0).unwrap();
        let config = TrainConfig { pack: Some(64), ..TrainConfig::default() };
        let task = Contrastive::new(model.embedder().clone());
        let refused = Trainer::contrastive(model.model(), task, adapter, config).err().unwrap();
        assert!(matches!(refused, Error::OutOfBounds { name: "pack", .. }), "{refused}");
    }
}
