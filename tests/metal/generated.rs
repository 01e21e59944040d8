//! The Metal source that CubeCL makes of each of our kernels, made here by the compiler it uses on a Mac, and executed on the CPU.

#[path = "generated/arguments.rs"]
mod arguments;
#[path = "generated/elements.rs"]
mod elements;
#[path = "generated/gradients.rs"]
mod gradients;
#[path = "generated/mutations.rs"]
mod mutations;
#[path = "generated/products.rs"]
mod products;
#[path = "generated/rows.rs"]
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use arguments::Case;
use mutations::MUTATIONS;

use crate::metal::{Dtype, Run, Workbench, files};

/// Makes the cases of a kernel.
type Cases = fn() -> Vec<Case>;

/// A kernel and the cases it must pass: a line for each function under `#[cube(launch)]`.
const KERNELS: &[(&str, Cases)] = &[
    ("rms_norm::norm", rows::rms_norms),
    ("rms_norm::norm_backward", rows::rms_norm_backwards),
    ("add_rms_norm::add_norm", rows::add_rms_norms),
    ("layer_norm::norm", rows::layer_norms),
    ("layer_norm::norm_backward", rows::layer_norm_backwards),
    ("add_layer_norm::add_norm", rows::add_layer_norms),
    ("softmax::exponentials", rows::softmaxes),
    ("softmax::exponentials_backward", rows::softmax_backwards),
    ("linear::rows_times_weight", products::single_linears),
    ("linears::rows_times_weights", products::several_linears),
    ("embedding::unpack_rows", products::tables),
    ("attention::attend", products::attentions),
    ("rope::turn_pairs", elements::ropes),
    ("norm_rope::norm_and_turn", rows::norm_ropes),
    ("write_rows::place_values", elements::written_rows),
    ("swiglu::gated", elements::swiglus),
    ("swiglu::gated_backward", elements::swiglu_backwards),
    ("gelu::activated", elements::gelus),
    ("gelu::activated_backward", elements::gelu_backwards),
];

/// Says what is wrong with what a case has written, if anything.
fn compare(case: &Case, outputs: &[Vec<u8>]) -> Result<(), String> {
    assert_eq!(outputs.len(), case.expected.len());
    for (number, (bytes, (format, expected))) in outputs.iter().zip(&case.expected).enumerate() {
        let tolerance = match format {
            Dtype::F32 => case.tolerance,
            Dtype::F16 => 1e-3,
        };
        let actual = format.values(bytes);
        assert_eq!(actual.len(), expected.len());
        for (at, (actual, &expected)) in actual.into_iter().zip(expected).enumerate() {
            let expected = format.round(expected);
            let same = actual == expected || actual.is_nan() && expected.is_nan();
            let close = (actual - expected).abs() <= tolerance * expected.abs().max(1.0);
            if !same && !close {
                return Err(format!("element {at} of output {number} is {actual} instead of {expected}"));
            }
        }
    }
    Ok(())
}

/// Runs cases of one source on this text of it; says what went wrong first.
fn check(workbench: &Workbench, cases: &[&Case], source: &str) -> Result<(), String> {
    let runs: Vec<Run> = cases.iter().map(|case| case.run.clone()).collect();
    let outcomes = workbench.compile_generated(source)?.run(&runs);
    for (case, outcome) in cases.iter().zip(outcomes) {
        outcome.and_then(|outputs| compare(case, &outputs)).map_err(|wrong| format!("{}: {wrong}", case.what))?;
    }
    Ok(())
}

/// Cases of one source together, in the order in which the sources come first.
fn by_source(cases: &[Case]) -> Vec<Vec<&Case>> {
    let mut places = BTreeMap::new();
    let mut groups: Vec<Vec<&Case>> = Vec::new();
    for case in cases {
        let place = *places.entry(&case.source).or_insert(groups.len());
        groups.resize_with(groups.len().max(place + 1), Vec::new);
        groups[place].push(case);
    }
    groups
}

/// Does the pieces of work on all cores; what they return, in no order.
fn on_all_cores<T: Sync, R: Send>(pieces: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take =
        || std::iter::from_fn(|| pieces.get(next.fetch_add(1, Ordering::Relaxed))).map(&work).collect::<Vec<R>>();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(take)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread that ends")).collect()
    })
}

#[test]
fn every_kernel_is_in_the_registry() {
    let mut kernels = BTreeSet::new();
    for path in files("src/backend", ".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        for kernel in text.split("\n#[cube(launch").skip(1) {
            let name = kernel.split_once("fn ").unwrap().1;
            let op = path.parent().unwrap().file_name().unwrap().to_string_lossy();
            kernels.insert(format!("{op}::{}", &name[..name.find(['<', '(']).unwrap()]));
        }
    }
    let registered: BTreeSet<String> = KERNELS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mutated: BTreeSet<String> = MUTATIONS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert!(!kernels.is_empty());
    assert_eq!(kernels, registered);
    assert_eq!(kernels, mutated, "every kernel has a mutation that must be caught");
}

/// CubeCL compares each index with the length of its buffer, reads zero behind it and writes nothing there. With lengths without end
/// every index stands as the kernel has computed it.
fn unchecked(source: &str) -> String {
    let endless = |line: &str| match line.split_once(" = info.static_meta[") {
        Some((declared, _)) => format!("{declared} = uint(4294967295);\n"),
        None => format!("{line}\n"),
    };
    source.lines().map(endless).collect()
}

/// Runs every case on its source, changed like that.
fn check_all(change: impl Fn(&str) -> String + Sync) {
    let workbench = Workbench::new();
    let wrong: Vec<String> = on_all_cores(KERNELS, |(name, cases)| {
        let mut wrong = Vec::new();
        for group in by_source(&cases()) {
            let Err(error) = check(&workbench, &group, &change(&group[0].source)) else {
                group.iter().for_each(|case| println!("{name}, {}: passed", case.what));
                continue;
            };
            wrong.push(format!("{name}, {error}"));
        }
        wrong
    })
    .concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "needs clang-19"]
fn every_generated_kernel_agrees_with_the_oracle() {
    check_all(str::to_owned);
}

#[test]
#[ignore = "needs clang-19"]
fn no_kernel_needs_its_indices_checked() {
    check_all(unchecked);
}

#[test]
#[ignore = "needs clang-19"]
fn every_mutation_of_a_generated_kernel_is_caught() {
    let workbench = Workbench::new();
    let unnoticed: Vec<String> = on_all_cores(MUTATIONS, |(kernel, from, to, caught_by)| {
        let (_, cases) = KERNELS.iter().find(|(name, _)| name == kernel).expect("a registered kernel");
        let cases = cases();
        let mut seen = Vec::new();
        for group in by_source(&cases).into_iter().filter(|group| group[0].source.contains(from)) {
            match check(&workbench, &group, &group[0].source.replacen(from, to, 1)) {
                Err(wrong) if wrong.contains(caught_by) => {
                    println!("{kernel}: `{to}` for `{from}`: {wrong}");
                    return Vec::new();
                }
                otherwise => seen.push(format!("{otherwise:?}")),
            }
        }
        let said = if seen.is_empty() { &cases[0].source } else { &seen.join("\n") };
        vec![format!("{kernel}: nobody noticed `{to}` for `{from}` by `{caught_by}`:\n{said}")]
    })
    .concat();
    assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
}
