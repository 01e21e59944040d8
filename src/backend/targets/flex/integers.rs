//! `x · Wᵀ` for weights in blocks of small integers, as products of integers: each row of `x` is rounded to eight bits in blocks as long as
//! those of the weights, the integers of two blocks are multiplied and summed exactly, and the sum is scaled in f32.
//!
//! A row's result depends on that row alone, whatever rows come with it and on how many threads: one pass over a prompt, the same in
//! chunks, and decoding token by token round the same values in the same way. The gradient is that of the product with the rounded rows,
//! which is the gradient of the product itself: rounding has none.

mod activations;
mod tile;

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use self::activations::Activations;
use self::tile::{Ahead, Kernel, Operands, TILE};
use super::matrix::{Into, Product, SharedColumns};
use super::packed::{LANES, PackedRows};
use super::weights::{Weights, shares};
use crate::packed::Format;
use crate::targets::cpu::ByteProducts;

/// Columns after which sums are parked in the output, so that the panels beside some rows of activations stay in the nearest cache.
const DEPTH: usize = 1024;
/// Rows of activations taken through a part of the weight together, so that they and what is written of the output stay in a cache.
const ROWS: usize = 512;
/// Weight rows that a thread takes at a time at least.
const SHARE_ROWS: usize = 96;
/// Products that are done before another thread has begun.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// `out[row · outputs + o] (+)= Σ x[row · inputs + i] · weights[o, i]` of each product, with `x` rounded to eight bits by blocks, once for all.
///
/// # Panics
/// If a slice does not fit the sizes, or the weights are not of one format.
pub(crate) fn rows_times_packed(set: ByteProducts, x: &[f32], products: Vec<Product<PackedRows>>) {
    let weights = products[0].weights;
    let (inputs, block, format) = (weights.inputs(), weights.block(), weights.format());
    let rows = x.len() / inputs;
    assert!(x.len() == rows * inputs);
    let kernel = Kernel::of(set);
    let x = Activations::round(set, x, inputs, block, format.zero());
    let outputs: Vec<usize> = products.iter().map(|product| product.weights.outputs()).collect();
    let products = products.into_iter().zip(&outputs).map(|(Product { weights, into, out }, &outputs)| {
        assert!((weights.inputs(), weights.block(), weights.format()) == (inputs, block, format));
        assert!(out.len() == rows * outputs && into.fits(outputs));
        (weights, into, SharedColumns::new(out, outputs))
    });
    let products: Vec<_> = products.collect();
    let compute = |product: usize, part: Range<usize>| {
        let (weights, into, destination) = &products[product];
        let depth = DEPTH / block;
        for start in (0..rows).step_by(ROWS) {
            let some = start..rows.min(start + ROWS);
            for first in part.clone().step_by(kernel.width) {
                let group = weights.rows(first..part.end.min(first + kernel.width));
                for start in (0..x.blocks()).step_by(depth) {
                    let blocks = start..x.blocks().min(start + depth);
                    let into = if start == 0 { into.columns(first..first + group.outputs()) } else { Into::Add };
                    // SAFETY: the weight rows of a call are its own, and so are their columns of the output, which is borrowed mutably
                    // for as long as this runs; their number fits, as the lengths agree.
                    unsafe { multiply(kernel, (&x, some.clone()), group, blocks, into, destination, first) };
                }
            }
        }
    };
    if rows * inputs * outputs.iter().sum::<usize>() < PARALLEL_PRODUCTS {
        return outputs.iter().enumerate().for_each(|(product, &outputs)| compute(product, 0..outputs));
    }
    let shares = shares(&outputs, kernel.width, SHARE_ROWS).par_bridge();
    shares.for_each(|share| share.into_iter().for_each(|(product, part)| compute(product, part)));
}

/// How far ahead of itself the only tile of a group asks for lines, as far as was fastest on a Xeon; of four bits it made hardly a difference.
fn bytes_ahead(format: Format) -> usize {
    match format {
        Format::Q8 => 2048,
        Format::Q4 => 8192,
    }
}

/// What the first tile of a group asks for: what the `only` one needs itself a little later, others the lines of the next group.
fn ahead(group: PackedRows, blocks: &Range<usize>, panels: usize, only: bool) -> Ahead {
    let next = group.panel_bytes() * panels;
    if !only {
        return Ahead { near: next, turn: blocks.len(), far: next };
    }
    // Behind the lines of a panel are its scales and other panels that are read at the same time.
    let (near, lines) = (bytes_ahead(group.format()), group.line_bytes());
    let turn = (lines.saturating_sub(near) / group.block_bytes()).saturating_sub(blocks.start);
    Ahead { near, turn, far: near + next - lines }
}

/// Some blocks of some rows of activations times those of a group of weight rows, which begin with a panel.
///
/// # Safety
/// No other thread may touch the group's columns of the destination, which begin at `first` and must lie inside it.
unsafe fn multiply(
    kernel: Kernel,
    (x, rows): (&Activations, Range<usize>),
    group: PackedRows,
    blocks: Range<usize>,
    into: Into,
    out: &SharedColumns,
    first: usize,
) {
    // Where the last group has fewer weight rows than a tile, its sums go through these.
    let (mut sums, whole) = ([0.0; TILE], group.outputs() == kernel.width);
    let panel = group.panel(blocks.start);
    // The next vector of a tile is in the next panel, or further on in the same lines.
    let next = if kernel.vector == LANES {
        (group.panel_bytes(), group.panel_bytes())
    } else {
        (4 * kernel.vector, 2 * kernel.vector)
    };
    let ahead = ahead(group, &blocks, kernel.width.div_ceil(LANES), rows.len() <= kernel.height);
    for row in rows.clone().step_by(kernel.height) {
        let height = kernel.height.min(rows.end - row);
        let at = row * x.blocks() + blocks.start;
        let operands = Operands {
            lines: (panel.lines.as_ptr(), next.0),
            scales: (panel.scales.as_ptr(), next.1),
            offsets: panel.offsets.map(<[f16]>::as_ptr),
            ahead: if row == 0 { ahead } else { Ahead::default() },
            x: (x.integers()[at * x.block..].as_ptr(), x.inputs),
            x_scales: x.scales()[at..].as_ptr(),
            x_sums: x.sums()[at..].as_ptr(),
            x_corrections: x.corrections()[at..].as_ptr(),
            x_blocks: x.blocks(),
            blocks: blocks.len(),
            into: if whole { into } else { Into::Overwrite },
            out: if whole { (out.at(row, first), out.stride()) } else { (sums.as_mut_ptr(), kernel.width) },
        };
        // SAFETY: panels come in pairs, as wide as any tile, each with these blocks; `x` has these rows; no tile is larger than
        // `TILE`; and the caller's promise.
        unsafe { kernel.tile(&operands, height, (group.format(), group.block())) };
        if whole {
            continue;
        }
        for (row, sums) in (row..row + height).zip(sums.chunks_exact(kernel.width)) {
            // SAFETY: the caller's promise.
            let out = unsafe { out.part_of_row(row, first, group.outputs()) };
            into.write(out, sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::Packed;
    use crate::targets::flex::packed::tensor;
    use crate::targets::flex::packed::tests::{matrices, values};

    fn product(set: ByteProducts, x: &[f32], packed: &Packed) -> Vec<f32> {
        let matrix = tensor(packed.clone());
        let mut out = vec![f32::NAN; x.len() / packed.shape[1] * packed.shape[0]];
        let product = Product { weights: PackedRows::of(&matrix), into: Into::Overwrite, out: &mut out };
        rows_times_packed(set, x, vec![product]);
        out
    }

    /// The values that integers of eight bits stand for, by the definition.
    fn rounded(x: &[f32], block: usize) -> Vec<f64> {
        let blocks = x.chunks_exact(block).flat_map(|x| {
            let scale = x.iter().fold(0.0f64, |most, value| most.max(f64::from(value.abs()))) / 127.0;
            x.iter().map(move |value| if scale == 0.0 { 0.0 } else { scale * (f64::from(*value) / scale).round() })
        });
        blocks.collect()
    }

    /// `Σ x · w`, and `Σ |x · w|`.
    fn sums(x: &[f64], weights: &[f32]) -> [f64; 2] {
        let terms = || x.iter().zip(weights).map(|(x, weight)| x * f64::from(*weight));
        [terms().sum(), terms().map(f64::abs).sum()]
    }

    #[test]
    fn every_instruction_set_multiplies_the_rounded_values_exactly() {
        for [rows, outputs, inputs] in
            [[1, 1, 32], [1, 1, 64], [5, 33, 96], [13, 40, 1024 + 32], [4, 70, 2176], [38, 96, 192]]
        {
            // Not on the grid of any block; ties would be decided by the last bit of a scale.
            let x: Vec<f32> = values(1, rows * inputs).iter().map(|value| value * 0.9173 + 0.000_31).collect();
            for packed in matrices([outputs, inputs]) {
                let weights = packed.unpacked();
                let near = rounded(&x, packed.block);
                for set in ByteProducts::available() {
                    let out = product(set, &x, &packed);
                    for (at, value) in out.iter().map(|value| f64::from(*value)).enumerate() {
                        let (row, output) = (at / outputs, at % outputs);
                        let weights = &weights[output * inputs..][..inputs];
                        let here = row * inputs..(row + 1) * inputs;
                        let [exact, size] = sums(&near[here.clone()], weights);
                        let what = format!("{set:?} {:?} {} [{row}, {output}]", packed.format, packed.block);
                        assert!((value - exact).abs() <= 1e-6 * size, "{what}: {value}, {exact}");
                        // Half a step for each value at most, and not all of them on one side.
                        let unrounded: Vec<f64> = x[here].iter().map(|value| f64::from(*value)).collect();
                        let [exact, size] = sums(&unrounded, weights);
                        assert!((value - exact).abs() <= size / 127.0, "{what}: {value}, {exact} unrounded");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_integers_do_not_overflow() {
        // Unsigned weights of 0 and 255 are −128 and 127; the largest pair sums, on one side and the other.
        for format in [Format::Q8, Format::Q4] {
            for byte in [0x00, 0x80, 0x7f, 0xff] {
                let integers = vec![byte; 17 * 32 * format.bits() / 8];
                let (scales, offsets) = (vec![f16::ONE; 17], None);
                let packed = Packed { format, block: 32, shape: [17, 32], integers, scales, offsets };
                for sign in [1.0, -1.0] {
                    let exact = 32.0 * 127.0 * sign * packed.unpacked()[0];
                    let alternating: Vec<f32> = (0..32).map(|i| if i % 2 == 0 { 127.0 } else { -127.0 }).collect();
                    for set in ByteProducts::available() {
                        let of_one_sign = product(set, &[127.0 * sign; 32], &packed);
                        assert!(format == Format::Q4 || of_one_sign.iter().all(|value| *value == exact), "{set:?}");
                        let expected: f32 = alternating.iter().zip(packed.unpacked()).map(|(x, w)| x * w).sum();
                        assert!(product(set, &alternating, &packed).iter().all(|value| *value == expected), "{set:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_whatever_rows_come_with_it() {
        let (rows, outputs, inputs) = (33, 300, 1152);
        let x = values(3, rows * inputs);
        for packed in matrices([outputs, inputs]) {
            for set in ByteProducts::available() {
                let together = product(set, &x, &packed);
                for first in [0, 5, 32] {
                    let alone = product(set, &x[first * inputs..(first + 1) * inputs], &packed);
                    assert_eq!(alone, together[first * outputs..(first + 1) * outputs], "{set:?}");
                }
                let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
                assert_eq!(one.install(|| product(set, &x, &packed)), together, "{set:?}");
            }
        }
    }

    #[test]
    fn a_value_that_is_no_number_spoils_its_own_row_only() {
        for packed in matrices([40, 64]) {
            for (set, spoiled) in
                ByteProducts::available().into_iter().flat_map(|set| [(set, f32::NAN), (set, f32::INFINITY)])
            {
                let mut x = values(1, 20 * 64);
                x[7 * 64 + 5] = spoiled;
                for (at, value) in product(set, &x, &packed).iter().enumerate() {
                    assert_eq!(value.is_finite(), at / 40 != 7, "{set:?} {at} {value}");
                }
            }
        }
    }

    #[test]
    fn a_product_is_added_to_what_is_there() {
        let (x, packed) = (values(1, 3 * 2048), matrices([50, 2048]).remove(0));
        for set in ByteProducts::available() {
            let (mut out, matrix) = (vec![0.5; 150], tensor(packed.clone()));
            let added = Product { weights: PackedRows::of(&matrix), into: Into::Add, out: &mut out };
            rows_times_packed(set, &x, vec![added]);
            for (sum, product) in out.iter().zip(product(set, &x, &packed)) {
                assert!((sum - 0.5 - product).abs() < 1e-4, "{set:?} {sum} {product}");
            }
        }
    }
}
