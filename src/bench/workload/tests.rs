//! The workloads: each once, what they cost, and the sizes of the models.

use super::*;

#[test]
fn no_two_workloads_have_the_same_description() {
    let descriptions: Vec<_> = all(true).iter().map(Workload::describe).collect();
    for (at, description) in descriptions.iter().enumerate() {
        assert!(!descriptions[..at].contains(description), "{description:?}");
    }
    assert!(descriptions.len() > 100 && all(false).len() < 25);
}

#[test]
fn a_quarter_is_a_quarter_of_the_work() {
    for workload in all(true) {
        let Some(quarter) = workload.quarter() else { continue };
        let (whole, quarter) = (workload.cost(), quarter.cost());
        let share = |of: fn(&Cost) -> usize| of(&quarter) as f64 / of(&whole).max(1) as f64;
        let (bytes, operations) = (share(|cost| cost.bytes), share(|cost| cost.operations));
        let ratio = if whole.operations > 0 { operations } else { bytes };
        assert!((0.15..0.4).contains(&ratio), "{workload:?}: {ratio}");
    }
}

#[test]
fn the_sizes_are_those_of_the_models() {
    // 494 million parameters, of which 136 million are the table; the rest is norms and biases.
    assert_eq!(qwen::weights(), 494_032_768 - 24 * (896 * 2 + 896 + 2 * 128) - 896);
    assert_eq!(e5::weights(), 21_233_664);
}
