//! Training equals PyTorch and PEFT, its gradients equal central differences, and nothing frozen is touched.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use firebrick::core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick::core::lora::{Adapter, LoraConfig, Targets};
use firebrick::core::model::CausalLm;
use firebrick::core::train::adamw::AdamWConfig;
use firebrick::core::train::data::{Dataset, Example};
use firebrick::core::train::evaluate::mean_loss;
use firebrick::core::train::run::{Duration, Event, TrainConfig, Trainer};
use firebrick::core::train::schedule::{LearningRate, Schedule};
use firebrick::models::load_causal_lm;
use firebrick::{KernelBackend, TrainBackend};
use support::{DECODERS, Golden, Inner, assert_near, floats, load, logits};

/// The golden training batch; a label of −100 is no target.
fn golden_examples(golden: &Golden) -> Vec<Example> {
    let labels = golden.integers("train.0.labels");
    let rows = golden.rows("train.0.input_ids").into_iter().zip(golden.integers("train.0.attention_mask")).zip(labels);
    let example = |((ids, mask), labels): ((Vec<u32>, Vec<i64>), Vec<i64>)| {
        let length = mask.iter().filter(|&&m| m == 1).count();
        assert!(mask[..length].iter().all(|&m| m == 1), "right padding");
        let weights = labels[..length].iter().enumerate().map(|(at, &label)| f32::from(u8::from(at > 0 && label >= 0)));
        Example { tokens: ids[..length].to_vec(), weights: weights.collect(), line: 1 }
    };
    rows.map(example).collect()
}

fn config(rate: f64, steps: usize) -> TrainConfig {
    TrainConfig {
        learning_rate: LearningRate { peak: rate, schedule: Schedule::Constant, warmup_steps: 0, final_fraction: None },
        batch_size: 2,
        duration: Duration::Steps(steps),
        max_grad_norm: None,
        ..TrainConfig::default()
    }
}

/// A rank-4 adapter of these targets whose `B` is not zero.
fn random_adapter<B: KernelBackend>(model: &dyn CausalLm<B>, targets: &str, spread: f32) -> Adapter<B> {
    let lora = LoraConfig { rank: 4, targets: Targets::parse(targets), ..LoraConfig::default() };
    support::random_adapter(model, &lora, spread)
}

contract! {
    fn five_steps_of_adamw_equal_peft<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<B>(&device);
            let facts = &golden.facts["train"];
            let adapter = Adapter::load(&golden.folder.join("lora_train/init"), &device).unwrap();
            let trainer = &mut Trainer::new(&*model, adapter, config(facts["lr"].as_f64().unwrap(), 5)).unwrap();
            let examples = golden_examples(&golden);
            let batch: Vec<&Example> = examples.iter().collect();
            for step in 0..5 {
                let taken = trainer.step(&batch, facts["lr"].as_f64().unwrap()).unwrap();
                let expected = facts["losses_before_each_step"][step].as_f64().unwrap();
                assert!((taken.loss - expected).abs() < 1e-4, "{name} step {step}: loss {} not {expected}", taken.loss);
                let expected = facts["grad_norms_before_clipping"][step].as_f64().unwrap();
                assert!((taken.grad_norm - expected).abs() < 1e-3 * expected, "{name}: norm {} not {expected}", taken.grad_norm);
            }
            let reference = Adapter::<Inner<B>>::load(&golden.folder.join("lora_train/final"), &device).unwrap();
            assert_eq!(reference.modules().len(), trainer.adapter().modules().len());
            for (path, module) in trainer.adapter().modules() {
                let reference = &reference.modules()[path];
                assert_near(&floats(module.a.clone()), &floats(reference.a.clone()), 2e-5, 1e-4, path);
                assert_near(&floats(module.b.clone()), &floats(reference.b.clone()), 2e-5, 1e-4, path);
            }
            let after = trainer.step(&batch, 0.0).unwrap().loss;
            assert!((after - facts["loss_after_last_step"].as_f64().unwrap()).abs() < 1e-4);
        }
    }
}

contract! {
    fn the_first_gradients_equal_peft<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let adapter = Adapter::load(&golden.folder.join("lora_train/init"), &device).unwrap();
            let model = golden.load::<B>(&device);
            let gradients = gradients_of::<B>(&*model, &adapter, &golden_examples(&golden));
            for (path, [d_a, d_b]) in gradients {
                let name = |side| format!("train.grad0.base_model.model.{path}.lora_{side}.weight");
                assert_near(&d_a, &golden.floats(&name("A")).0, 1e-5, 1e-4, &name("A"));
                assert_near(&d_b, &golden.floats(&name("B")).0, 1e-5, 1e-4, &name("B"));
            }
        }
    }
}

/// The gradient that training takes, read off a step of plain arithmetic: AdamW with β = 0 and ε → ∞ would hide its scale, so the loss is
/// differentiated through the same handles the trainer uses.
fn gradients_of<B: TrainBackend>(
    model: &dyn CausalLm<B>,
    adapter: &Adapter<B::InnerBackend>,
    examples: &[Example],
) -> BTreeMap<String, [Vec<f32>; 2]> {
    use firebrick::backend::ops::cross_entropy::Targets;
    use firebrick::core::nn::Lora;
    use firebrick::core::sequence::Sequences;
    let mut tracked = BTreeMap::new();
    let mut handle = model.boxed();
    handle.each_linear(&mut |path, linear| {
        linear.lora = adapter.modules().get(path).map(|module| {
            let a = Tensor::<B, 2>::from_inner(module.a.clone()).require_grad();
            let b = Tensor::<B, 2>::from_inner(module.b.clone()).require_grad();
            tracked.insert(path.to_owned(), (a.clone(), b.clone()));
            Lora { a, b, scale: module.scale, dropout: None }
        });
    });
    let ids: Vec<Vec<u32>> = examples.iter().map(|example| example.tokens.clone()).collect();
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for example in examples {
        for at in 0..example.tokens.len() {
            targets.push(*example.tokens.get(at + 1).unwrap_or(&0));
            weights.push(*example.weights.get(at + 1).unwrap_or(&0.0));
        }
    }
    let total: f32 = weights.iter().sum();
    let hidden = handle.hidden(&Sequences::whole(&ids, &model.device()), None);
    let mut gradients = (handle.loss(hidden, &Targets::new(targets, weights)) / total).backward();
    let read = |(path, (a, b)): (String, (Tensor<B, 2>, Tensor<B, 2>))| {
        let [d_a, d_b] = [a, b].map(|matrix| floats(matrix.grad_remove(&mut gradients).expect("a gradient")));
        (path, [d_a, d_b])
    };
    tracked.into_iter().map(read).collect()
}

contract! {
    fn gradients_of_a_and_b_equal_central_differences_in_f64<B>(device) {
        let step = 1e-5;
        for name in DECODERS {
            let golden = Golden::open(name);
            let examples = golden_examples(&golden);
            let model = golden.load::<B>(&device);
            let adapter = random_adapter(&*model.valid(), "all-linear", 0.2);
            let gradients = gradients_of::<B>(&*model, &adapter, &examples);
            // The differences are those of the CPU in f64, whatever the gradients were taken on.
            let checkpoint = Checkpoint::open(&golden.folder).unwrap();
            let exact = load_causal_lm::<Flex>(&checkpoint, DTypePolicy::Convert(DType::F64), &FlexDevice).unwrap();
            let adapter = random_adapter(&*exact, "all-linear", 0.2);
            let dataset = Dataset::from_examples(examples);
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
                mean_loss(&*adapter.with_matrices(modules).attach(&*exact).unwrap(), &dataset).unwrap()
            };
            let mut checked = 0;
            for kind in ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] {
                let paths: Vec<&String> = gradients.keys().filter(|path| path.ends_with(kind)).collect();
                for entry in 0..20 {
                    let path = paths[entry % paths.len()];
                    for (side, gradient) in gradients[path].iter().enumerate() {
                        let at = (entry * 7919 + 13) % gradient.len();
                        let numeric = (loss(path, side, at, step) - loss(path, side, at, -step)) / (2.0 * step);
                        let error = (f64::from(gradient[at]) - numeric).abs();
                        assert!(error < 2e-5 + 1e-3 * numeric.abs(), "{name} {path} {side}[{at}]: {} not {numeric}", gradient[at]);
                        assert!(gradient.iter().any(|value| *value != 0.0), "{path}: all zero");
                        checked += 1;
                    }
                }
            }
            assert_eq!(checked, 7 * 20 * 2);
        }
    }
}

contract! {
    fn a_new_adapter_changes_nothing<B>(device) {
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<Inner<B>>(&device);
        let ids = golden.rows("single.input_ids");
        let adapter = Adapter::create(&*model, &LoraConfig::default(), 0).unwrap();
        assert_eq!(logits(&*adapter.attach(&*model).unwrap(), &ids), logits(&*model, &ids));
    }
}

contract! {
    fn accumulation_equals_one_large_batch<B>(device) {
        let golden = Golden::open("qwen3-tiny");
        let model = golden.load::<B>(&device);
        let mut examples = golden_examples(&golden);
        // Examples of different weight: a mean of means would differ.
        examples[0].weights.iter_mut().skip(4).for_each(|weight| *weight = 0.0);
        let batch: Vec<&Example> = examples.iter().collect();
        let adapter = random_adapter(&*model.valid(), "q_proj,v_proj", 0.2);
        let run = |batch_size| {
            let config = TrainConfig { batch_size, ..config(1e-3, 1) };
            let mut trainer = Trainer::new(&*model, adapter.clone(), config).unwrap();
            let step = trainer.step(&batch, 1e-3).unwrap();
            (step.loss, step.grad_norm)
        };
        let (whole, parts) = (run(2), run(1));
        assert!((whole.0 - parts.0).abs() < 1e-5 && (whole.1 - parts.1).abs() < 1e-4 * whole.1, "{whole:?} {parts:?}");
    }
}

/// Loss and final matrices of a short run.
fn short_run<B: TrainBackend>(
    model: &dyn CausalLm<B>,
    seed: u64,
    dropout: f64,
    clip: Option<f64>,
) -> (Vec<f64>, Vec<f32>) {
    let examples: Vec<Example> = (0..6u32)
        .map(|row| {
            let tokens: Vec<u32> = (0..9).map(|at| (row * 37 + at * 11) % 512).collect();
            Example { weights: vec![0.0].into_iter().chain([1.0; 8]).collect(), tokens, line: row as usize + 1 }
        })
        .collect();
    let lora = LoraConfig { dropout, ..LoraConfig::default() };
    let adapter = Adapter::create(&*model.valid(), &lora, seed).unwrap();
    let config = TrainConfig { seed, max_grad_norm: clip, adamw: AdamWConfig::default(), ..config(1e-3, 7) };
    let mut trainer = Trainer::new(model, adapter, config).unwrap();
    let mut losses = Vec::new();
    trainer
        .run(&Dataset::from_examples(examples), None, &mut |event| {
            if let Event::Step(step) = event {
                losses.push(step.loss);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    let matrices = trainer.adapter().modules().values().flat_map(|module| floats(module.b.clone()));
    (losses, matrices.collect())
}

contract! {
    fn a_seed_decides_a_run_bit_for_bit<B>(device) {
        let model = load::<B>(&support::repository("tests/goldens/qwen2-tiny"), &device);
        let first = short_run(&*model, 1, 0.1, None);
        assert_eq!(first, short_run(&*model, 1, 0.1, None));
        assert_ne!(first, short_run(&*model, 2, 0.1, None));
        assert_ne!(first, short_run(&*model, 1, 0.0, None), "dropout acts");
        assert_ne!(first.1, short_run(&*model, 1, 0.1, Some(1e-3)).1, "clipping acts");
        assert_eq!(first.0.len(), 7);
    }
}

contract! {
    fn cancelling_keeps_the_last_whole_step<B>(device) {
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<B>(&device);
        let dataset = Dataset::from_examples(golden_examples(&golden));
        let adapter = Adapter::create(&*model.valid(), &LoraConfig::default(), 0).unwrap();
        let mut trainer = Trainer::new(&*model, adapter, config(1e-3, 100)).unwrap();
        let mut steps = 0;
        trainer
            .run(&dataset, Some(&dataset), &mut |event| match event {
                Event::Step(step) => {
                    steps = step.step;
                    if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }
                _ => ControlFlow::Continue(()),
            })
            .unwrap();
        assert_eq!(steps, 3);
        assert!(trainer.adapter().modules().values().any(|module| floats(module.b.clone()).iter().any(|b| *b != 0.0)));
    }
}

contract! {
    fn what_cannot_train_stops_with_its_name<B>(device) {
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<B>(&device);
        let examples = golden_examples(&golden);
        let batch: Vec<&Example> = examples.iter().collect();
        let adapter = Adapter::<Inner<B>>::create(&*model.valid(), &LoraConfig::default(), 0).unwrap();
        let all = |value: f32| {
            let modules = adapter.modules().iter().map(|(path, module)| {
                (path.clone(), module.a.clone() * 0.0 + value, module.b.clone() * 0.0 + value)
            });
            adapter.with_matrices(modules.collect::<Vec<_>>())
        };
        let stuck = Trainer::new(&*model, all(0.0), config(1e-3, 1)).err().expect("nothing could be learnt").to_string();
        assert!(stuck.contains("model.layers.0.self_attn.q_proj") && stuck.contains("both zero"), "{stuck}");
        let mut spoiled = Trainer::new(&*model, all(f32::NAN), config(1e-3, 1)).unwrap();
        let error = spoiled.step(&batch, 1e-3).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
    }
}

contract! {
    fn a_row_that_teaches_some_modules_nothing_is_learnt_from<B>(device) {
        // With one query that sees one key, the weight of that key is 1 whatever the query is.
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<B>(&device);
        let adapter = random_adapter(&*model.valid(), "q_proj,v_proj", 0.1);
        let mut trainer = Trainer::new(&*model, adapter, TrainConfig { batch_size: 1, ..config(1e-3, 1) }).unwrap();
        let row = Example { tokens: vec![5, 9], weights: vec![0.0, 1.0], line: 1 };
        let taken = trainer.step(&[&row], 1e-3).unwrap();
        assert!(taken.loss > 0.0 && taken.grad_norm > 0.0, "{taken:?}");
    }
}

contract! {
    fn tokens_that_the_model_does_not_know_are_refused_by_their_line<B>(device) {
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<B>(&device);
        let vocabulary = model.facts().vocabulary as u32;
        let rows = |id: u32| {
            let row = |line| Example { tokens: vec![5, 9, 7], weights: vec![0.0, 1.0, 1.0], line };
            let last = Example { tokens: vec![5, id, 7], ..row(3) };
            Dataset::from_examples(vec![row(1), row(2), last])
        };
        let adapter = Adapter::create(&*model.valid(), &LoraConfig::default(), 0).unwrap();
        let mut trainer = Trainer::new(&*model, adapter, config(1e-3, 1)).unwrap();
        let error = trainer.run(&rows(vocabulary), None, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains(&vocabulary.to_string()), "{error}");
        trainer.run(&rows(vocabulary - 1), None, &mut |_| ControlFlow::Continue(())).unwrap();
    }
}
