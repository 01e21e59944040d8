//! The gate finds what is wrong: a fault planted in each check in turn, and nothing found where there is none.

#[path = "support/watched.rs"]
mod watched;

use burn::backend::Autodiff;
use burn::tensor::DType;
use firebrick::backend::packed::{BLOCK, Format};
use firebrick::gate::{Check, Op, Outcome, examine, failed};
use watched::{Lie, Watched, lie};

/// Every check but the longest gradients, which take seconds.
fn quick() -> Vec<Check> {
    Check::all().into_iter().filter(|check| !matches!(check, Check::Gradients(tokens) if *tokens > 256)).collect()
}

/// The names of the checks that fail with this fault planted.
fn found(fault: Lie, checks: &[Check]) -> Vec<String> {
    lie(Some(fault));
    let mut seen = Vec::new();
    let findings = examine::<Autodiff<Watched>>(&Default::default(), checks, None, &mut |finding| {
        seen.push(finding.check.clone())
    });
    lie(None);
    let findings = findings.unwrap();
    assert_eq!(seen.len(), checks.len(), "each finding is reported when it is made");
    failed(&findings).map(str::to_owned).collect()
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let findings = examine::<Autodiff<Watched>>(&Default::default(), &Check::all(), None, &mut |_| {}).unwrap();
    assert_eq!(findings.len(), Check::all().len());
    for finding in findings {
        assert!(matches!(finding.outcome, Outcome::Passed { .. }), "{finding:?}");
    }
}

#[test]
fn a_wrong_op_is_named() {
    let names = [
        "rms_norm",
        "layer_norm",
        "add_rms_norm",
        "add_layer_norm",
        "softmax",
        "rope",
        "rope_into",
        "norm_rope",
        "norm_rope_into",
        "swiglu",
        "gelu",
        "linear",
        "linears",
        "lora_linear",
        "attention",
        "write_rows",
        "cross_entropy_of_linear",
    ];
    for name in names {
        let failed = found(Lie::Forward(name), &quick());
        assert_eq!(failed.first().map(String::as_str), Some(name), "{failed:?}");
    }
    // Every op of the gate is met above; attention has two checks.
    assert_eq!(Op::ALL.len(), names.len() + 1);
}

#[test]
fn a_wrong_gradient_of_an_op_is_named() {
    // Those of a sum's norm and of a head's go through that of the norm; those of several linears, of one under an adapter and of the head's
    // loss go through that of the linear.
    let norms = &["rms_norm", "add_rms_norm", "norm_rope", "norm_rope_into"][..];
    let linears = &["linear", "linears", "lora_linear", "cross_entropy_of_linear"][..];
    for (name, first) in [("rms_norm", norms), ("linear", linears)] {
        let failed = found(Lie::Backward(name), &quick());
        assert_eq!(failed, [first, &["gradients over 64 tokens", "gradients over 256 tokens"]].concat());
    }
}

#[test]
fn a_model_that_is_wrong_though_its_ops_are_right_is_named() {
    // Only sequences longer than those of the ops' checks show it.
    let failed = found(Lie::LatePositions(40), &quick());
    assert_eq!(failed[0], "logits");
    assert!(failed.contains(&"cached decode".to_owned()), "one pass and the cache differ: {failed:?}");
}

#[test]
fn a_cache_that_is_wrong_is_named() {
    assert_eq!(found(Lie::Cached, &quick()), ["attention over a cache", "cached decode"]);
}

#[test]
fn gradients_that_break_at_a_length_are_named() {
    let checks = [64, 256, 1024].map(Check::Gradients);
    assert_eq!(found(Lie::NanFromRows(1000), &checks), ["gradients over 1024 tokens"]);
    assert_eq!(found(Lie::NanFromRows(200), &checks), ["gradients over 256 tokens", "gradients over 1024 tokens"]);
}

#[test]
fn a_narrow_dtype_that_is_wrong_is_named() {
    assert_eq!(found(Lie::Weights(DType::F16), &quick()), ["f16 weights"]);
    assert_eq!(found(Lie::Weights(DType::BF16), &quick()), ["bf16 weights"]);
    // A table of tokens, which is the head as well, has eight bits where other weights have four.
    assert_eq!(found(Lie::Weights(Format::Q8.dtype(64)), &quick()), ["q8 weights", "q4 weights"]);
    assert_eq!(found(Lie::Weights(Format::Q4.dtype(BLOCK)), &quick()), ["q4 weights"]);
}

#[test]
fn results_that_change_from_run_to_run_are_named() {
    assert_eq!(found(Lie::Unsteady, &quick()), ["determinism"]);
}

#[test]
fn a_device_that_gives_up_is_a_finding() {
    let checks = [Check::Op(Op::Softmax), Check::Op(Op::Rope)];
    lie(Some(Lie::Panics));
    let findings = examine::<Autodiff<Watched>>(&Default::default(), &checks, None, &mut |_| {}).unwrap();
    lie(None);
    assert_eq!(findings[0].outcome, Outcome::Failed { problem: "it panics: device lost".into() });
    assert!(matches!(findings[1].outcome, Outcome::Passed { .. }), "the examination goes on");
}

#[test]
fn a_slow_device_is_not_kept_waiting_and_says_so() {
    let checks = [64, 256, 1024].map(Check::Gradients);
    let none = Some(std::time::Duration::ZERO);
    let findings = examine::<Autodiff<Watched>>(&Default::default(), &checks, none, &mut |_| {}).unwrap();
    assert!(matches!(findings[0].outcome, Outcome::Passed { .. }));
    assert!(
        findings[1..]
            .iter()
            .all(|finding| matches!(&finding.outcome, Outcome::NotRun { reason } if reason.contains("slow")))
    );
}
