//! The base is frozen and really is: no gradient of any weight of it is ever computed.

mod support;
#[path = "support/watched.rs"]
mod watched;

use std::sync::{Mutex, PoisonError};

use burn::backend::Autodiff;
use firebrick::core::train::data::Example;
use firebrick::prelude::*;
use support::{DECODERS, Golden};
use watched::{WEIGHT_GRADIENTS, Watched};

/// The watch is one for the process: its tests take turns.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn only_the_adapters_matrices_receive_gradients() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for name in DECODERS {
        let golden = Golden::open(name);
        let device = Default::default();
        let model = golden.load::<Autodiff<Watched>>(&device);
        let lora = LoraConfig { rank: 3, targets: Targets::AllLinear, ..LoraConfig::default() };
        let adapter = Adapter::create(&*model.valid(), &lora, 0).unwrap();
        let mut expected: Vec<Vec<usize>> = Vec::new();
        for module in adapter.modules().values() {
            expected.extend([module.a.dims().to_vec(), module.b.dims().to_vec()]);
        }
        let mut trainer = Trainer::new(&*model, adapter, TrainConfig::default()).unwrap();
        let example = Example { tokens: vec![1, 2, 3, 4, 5], weights: vec![0.0, 1.0, 1.0, 1.0, 1.0], line: 1 };
        WEIGHT_GRADIENTS.lock().unwrap().clear();
        trainer.step(&[&example], 1e-3).unwrap();
        let mut seen: Vec<Vec<usize>> = WEIGHT_GRADIENTS
            .lock()
            .unwrap()
            .drain(..)
            .map(|(op, shape)| {
                assert_eq!(op, "linear", "the gradient of a norm's weight was computed: {shape:?}");
                shape
            })
            .collect();
        // Each matrix once, and nothing else: the gradients of frozen weights count 0.
        expected.sort();
        seen.sort();
        assert_eq!(seen, expected, "{name}");
        assert!(seen.iter().all(|shape| shape.contains(&3)));
    }
}

#[test]
fn the_watch_sees_a_weight_that_is_trained() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    use burn::tensor::Tensor;
    use firebrick::backend::ops::linear::linear;
    type B = Autodiff<Watched>;
    let device = Default::default();
    let weight = Tensor::<B, 2>::ones([7, 5], &device).require_grad();
    let y = linear(Tensor::<B, 2>::ones([2, 5], &device), weight.clone(), None);
    let gradients = y.sum().backward();
    assert!(weight.grad(&gradients).is_some());
    assert!(WEIGHT_GRADIENTS.lock().unwrap().iter().any(|(_, shape)| *shape == [7, 5]));
}
