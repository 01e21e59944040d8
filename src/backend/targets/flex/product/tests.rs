//! Products against sums in f64, by each instruction set.

use half::{bf16, f16};

use burn::tensor::Shape;

use super::*;
use crate::targets::flex::arranged::{self, ArrangedRows};
use crate::targets::flex::dot::Stored;
use crate::targets::flex::packed::tests::{matrices, values};
use crate::targets::flex::packed::{PackedRows, tensor};
use crate::targets::flex::weights::Dense;

/// Multiplies `[rows, terms]` by a weight of so many inputs, whose values are those given in f32, and compares each sum.
fn check<'a>(set: InstructionSet, rows: usize, over: Over, weights: impl Weights<'a>, widened: &[f32]) {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    let (terms, sums) = if over == Over::Inputs { (inputs, outputs) } else { (outputs, inputs) };
    let x = values(1, rows * terms);
    let bias = values(3, sums);
    for (into, before) in [(Into::Overwrite, f32::NAN), (Into::Add, 0.5), (Into::Bias(&bias), f32::NAN)] {
        let mut out = vec![before; rows * sums];
        multiply(set, &x, over, vec![Product { weights, into, out: &mut out }]);
        for (at, &value) in out.iter().enumerate() {
            let (row, sum) = (at / sums, at % sums);
            let weight = |term| widened[if over == Over::Inputs { sum * inputs + term } else { term * inputs + sum }];
            let x = x[row * terms..][..terms].iter().enumerate();
            let exact: f64 = x.map(|(term, x)| f64::from(*x) * f64::from(weight(term))).sum();
            let expected = exact
                + match into {
                    Into::Overwrite => 0.0,
                    Into::Add => 0.5,
                    Into::Bias(bias) => f64::from(bias[sum]),
                };
            let allowed = 1e-6 * (terms + 1) as f64;
            assert!((f64::from(value) - expected).abs() < allowed, "{set:?} [{row}, {sum}]: {value}, {expected}");
        }
    }
}

fn check_dense<T: Stored>(set: InstructionSet, [rows, inputs, outputs]: [usize; 3], narrow: impl Fn(f32) -> T) {
    let weights: Vec<T> = values(2, outputs * inputs).into_iter().map(narrow).collect();
    let widened: Vec<f32> = weights.iter().map(|weight| weight.widen()).collect();
    for over in [Over::Inputs, Over::Outputs] {
        check(set, rows, over, Dense::new(&weights, inputs), &widened);
    }
}

fn check_arranged(set: InstructionSet, [rows, inputs, outputs]: [usize; 3]) {
    let weights = values(2, outputs * inputs);
    let plain = crate::targets::flex::tensor(weights.clone(), Shape::from(vec![outputs, inputs]));
    let arranged = arranged::tensor(&plain);
    for over in [Over::Inputs, Over::Outputs] {
        check(set, rows, over, ArrangedRows::of(&arranged), &weights);
    }
}

#[test]
fn every_instruction_set_gives_the_products() {
    for set in InstructionSet::available() {
        for rows in [1, 5, 15, 16, 17, 31, 33, 50, 70, 97, 144, 145, 170] {
            for [inputs, outputs] in [[1, 1], [7, 13], [384, 25], [513, 12], [1100, 6]] {
                check_dense(set, [rows, inputs, outputs], |value| value);
            }
        }
        check_dense(set, [33, 100, 31], f16::from_f32);
        // Enough rows for the weight to be packed, for all threads, for several parts of rows, of terms and of sums.
        check_dense(set, [200, 400, 415], |value| value);
        check_dense(set, [195, 70, 50], f16::from_f32);
        check_dense(set, [1100, 9, 14], |value| value);
        check_dense(set, [20, 5300, 13], |value| value);
        check_dense(set, [150, 5300, 13], |value| value);
        check_dense(set, [150, 100, 31], bf16::from_f32);
        check_dense(set, [600, 11, 7], |value| value);
    }
}

#[test]
fn arranged_weights_give_the_same_products() {
    for set in InstructionSet::available() {
        for rows in [1, 2, 4, 5, 9, 16, 17, 33, 50, 97, 144, 145] {
            for [inputs, outputs] in [[1, 1], [7, 13], [20, 48], [384, 65], [513, 112], [1100, 6], [30, 1100]] {
                check_arranged(set, [rows, inputs, outputs]);
            }
        }
        check_arranged(set, [200, 400, 415]);
        check_arranged(set, [1100, 9, 14]);
        check_arranged(set, [3, 5300, 100]);
        check_arranged(set, [20, 13, 5300]);
        check_arranged(set, [150, 13, 5300]);
    }
}

#[test]
fn packed_weights_are_multiplied_as_their_values() {
    for set in InstructionSet::available() {
        for packed in matrices([40, 256]) {
            let (widened, tensor) = (packed.unpacked(), tensor(packed));
            for rows in [37, 147] {
                check(set, rows, Over::Outputs, PackedRows::of(&tensor), &widened);
            }
        }
    }
}

#[test]
fn a_row_gives_the_same_on_one_thread_and_on_several() {
    let (inputs, outputs) = (700, 500);
    let (x, weights) = (values(1, 300 * inputs), values(2, inputs * outputs));
    let weights = Dense::new(&weights, inputs);
    for set in InstructionSet::available() {
        let product = |threads| {
            let mut out = vec![0.0; 300 * outputs];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let products = vec![Product { weights, into: Into::Overwrite, out: &mut out }];
            pool.install(|| multiply(set, &x, Over::Inputs, products));
            out
        };
        assert!(product(1) == product(3), "{set:?}");
        // Of a weight as it lies, and of one that is packed, as far as both are multiplied by the same instructions.
        let layout = |rows| Kernel::of(set, Over::Inputs, rows, false).layout();
        let same = |rows| layout(rows) == layout(300);
        let rows = if same(20) { 20 } else { 200 };
        let mut few = vec![0.0; rows * outputs];
        let products = vec![Product { weights, into: Into::Overwrite, out: &mut few }];
        multiply(set, &x[..rows * inputs], Over::Inputs, products);
        assert!(same(rows) && few == product(1)[..rows * outputs], "{set:?}");
    }
}

#[test]
fn a_value_that_is_no_number_spoils_its_own_row_only() {
    for set in InstructionSet::available() {
        for rows in [20, 600] {
            let (mut x, weights) = (values(1, rows * 64), values(2, 30 * 64));
            x[7 * 64 + 5] = f32::NAN;
            let mut out = vec![0.0; rows * 30];
            let weights = Dense::new(&weights, 64);
            multiply(set, &x, Over::Inputs, vec![Product { weights, into: Into::Overwrite, out: &mut out }]);
            for (at, value) in out.iter().enumerate() {
                assert_eq!(value.is_nan(), at / 30 == 7, "{set:?} {at}");
            }
        }
    }
}

#[test]
fn parts_are_even_and_make_the_whole() {
    for (length, most, unit, expected) in
        [(896, 384, 16, vec![304, 304, 288]), (384, 384, 16, vec![384]), (10, 4, 1, vec![4, 4, 2]), (0, 4, 2, vec![])]
    {
        let found: Vec<usize> = parts(5..5 + length, most, unit).map(|part| part.len()).collect();
        assert_eq!(found, expected);
    }
    for (number, power, expected) in [(12, 32, 96), (6, 32, 96), (2, 16, 16), (6, 1, 6), (12, 1, 12)] {
        assert_eq!(common_multiple(number, power), expected);
    }
}
