//! A loss or gradient that is not finite stays in its step.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use firebrick::core::train::data::Dataset;
use firebrick::core::train::run::{Event, TrainConfig, Trainer};

use crate::{Cpu, config, model, rows, told, trainer};

/// Rows of which those on the given lines have a weight that makes their loss infinite.
fn poisoned(lines: &[usize]) -> Dataset {
    let mut examples = rows().examples().to_vec();
    for example in examples.iter_mut().filter(|example| lines.contains(&example.line)) {
        example.weights[2] = f32::INFINITY;
    }
    Dataset::from_examples(examples)
}

fn matrices(trainer: &Trainer<Cpu>) -> Vec<f32> {
    let read = |tensor: &Tensor<firebrick::backends::Flex, 2>| tensor.to_data().iter::<f32>().collect::<Vec<_>>();
    trainer.adapter().modules().values().flat_map(|module| [read(&module.a), read(&module.b)].concat()).collect()
}

#[test]
fn a_step_that_is_not_finite_is_passed_over_and_changes_nothing() {
    let model = model::<Cpu>(&Default::default());
    // One row a step, so that one of seven steps is bad.
    let config = TrainConfig { batch_size: 1, gradient_accumulation: 1, eval_every: None, ..config(14) };
    let mut trainer = trainer(&*model, config);
    let (mut before, mut skipped, mut steps) = (matrices(&trainer), 0, Vec::new());
    let poisoned = poisoned(&[4]);
    trainer
        .run(&poisoned, None, &mut |event| {
            if let Event::Skipped { step, problem, .. } = &event {
                skipped += 1;
                assert!(problem.contains("the loss is not finite") || problem.contains("the gradient"), "{problem}");
                assert!(problem.contains(&format!("step {step}")) && problem.contains("line 4 of"), "{problem}");
            }
            if let Event::Step(step) = &event {
                assert!(step.loss.is_finite());
            }
            steps.extend(told(&event));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((skipped, steps.len()), (2, 14), "each epoch has the row once");
    assert!(matrices(&trainer).iter().all(|value| value.is_finite()));
    // A step of nothing but the bad row leaves adapter and optimizer as they are.
    let bad = poisoned.examples().iter().find(|example| example.line == 4).unwrap();
    before.clone_from(&matrices(&trainer));
    assert!(trainer.step(&[bad], 1e-2).unwrap_err().to_string().contains("not finite"));
    assert_eq!(matrices(&trainer), before);
}

#[test]
fn too_many_in_a_row_end_the_run_with_layer_and_rows() {
    let model = model::<Cpu>(&Default::default());
    let config = TrainConfig { max_skipped_steps: 2, ..config(14) };
    let mut with_loss = trainer(&*model, config.clone());
    let mut skipped = 0;
    let error = with_loss
        .run(&poisoned(&[1, 2, 3, 4, 5, 6, 7]), None, &mut |event| {
            skipped += usize::from(matches!(event, Event::Skipped { .. }));
            ControlFlow::Continue(())
        })
        .unwrap_err()
        .to_string();
    assert_eq!(skipped, 2);
    assert!(error.contains("not finite") && error.contains("step 3") && error.contains("lines "), "{error}");
    // An adapter whose update overflows in the second layer.
    let mut overflowing = trainer(&*model, config);
    let modules = overflowing.adapter().modules().iter().map(|(path, module)| {
        let factor = if path.contains("layers.1.self_attn.v_proj") { 3e38 } else { 0.0 };
        (path.clone(), module.a.clone() + factor, module.b.clone() + factor)
    });
    let adapter = overflowing.adapter().with_matrices(modules.collect::<Vec<_>>());
    overflowing = Trainer::new(&*model, adapter, TrainConfig { max_skipped_steps: 0, ..crate::config(3) }).unwrap();
    let error = overflowing.run(&rows(), None, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("first in layer 1"), "{error}");
}
