//! Tiles of AMX: four registers of sums, 32 by 32, whose operands stand in four more. The operands are those of [`pieces`](super::pieces).

use super::pieces::{BLOCK, PIECE, REGISTER, SIDE};
use crate::targets::cpu::amx::{LINE_BYTES, LINES, add_products, load, store, zero};
use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::prefetch;

/// A tile's sums, each row of them `pitch` values after the one before.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) at: *mut f32,
    pub(super) pitch: usize,
}

/// `sums[m, n] (+)= Σ left[m, k] · right[k, n]`. Of both operands the second half, sixteen rows or columns, may be left undone.
///
/// # Safety
/// AMX was [begun](crate::targets::cpu::amx::Tiles); both operands have so many blocks; the sums, 32 by 32 of them, can be written.
pub(super) unsafe fn tile(
    left: *const f32,
    right: *const f32,
    blocks: usize,
    halves: [bool; 2],
    add: bool,
    sums: Sums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match halves {
            [false, false] => all::<2, 2>(left, right, blocks, add, sums),
            [true, false] => all::<1, 2>(left, right, blocks, add, sums),
            [false, true] => all::<2, 1>(left, right, blocks, add, sums),
            [true, true] => all::<1, 1>(left, right, blocks, add, sums),
        }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn all<const L: usize, const R: usize>(
    mut left: *const f32,
    mut right: *const f32,
    blocks: usize,
    add: bool,
    sums: Sums,
) {
    let bytes = sums.pitch * size_of::<f32>();
    let at = |row: usize, column: usize| sums.at.wrapping_add(row * sums.pitch + column);
    /// Moves the registers of sums that are not left undone.
    macro_rules! each {
        ($moved:ident) => {
            $moved::<0>(at(0, 0), bytes);
            if R == 2 {
                $moved::<1>(at(0, LINES), bytes);
            }
            if L == 2 {
                $moved::<2>(at(LINES, 0), bytes);
            }
            if L == 2 && R == 2 {
                $moved::<3>(at(LINES, LINES), bytes);
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        if add {
            each!(load);
        } else {
            zero::<0>();
            zero::<1>();
            zero::<2>();
            zero::<3>();
        }
        for _ in 0..blocks {
            block::<L, R>(left, right);
            left = left.add(BLOCK);
            right = right.add(BLOCK);
        }
        each!(store);
    }
}

/// The products of a block: of the nine pairs of pieces the six whose sizes count, the pieces changed one at a time, so that most of them are
/// loaded once. Meanwhile the next block of both is asked for.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn block<const L: usize, const R: usize>(left: *const f32, right: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        operand::<4, 5, L>(left);
        operand::<6, 7, R>(right.add(2 * PIECE));
        products::<L, R>();
        ahead::<L, R>(left, right, 0);
        operand::<6, 7, R>(right.add(PIECE));
        products::<L, R>();
        ahead::<L, R>(left, right, 1);
        operand::<4, 5, L>(left.add(PIECE));
        products::<L, R>();
        ahead::<L, R>(left, right, 2);
        operand::<6, 7, R>(right);
        products::<L, R>();
        operand::<4, 5, L>(left.add(2 * PIECE));
        products::<L, R>();
        operand::<4, 5, L>(left);
        products::<L, R>();
    }
}

/// A piece in one register, or in two.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn operand<const FIRST: usize, const SECOND: usize, const COUNT: usize>(piece: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        load::<FIRST>(piece, LINE_BYTES);
        if COUNT == 2 {
            load::<SECOND>(piece.add(REGISTER), LINE_BYTES);
        }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn products<const L: usize, const R: usize>() {
    // SAFETY: the caller's promise.
    unsafe {
        add_products::<0, 4, 6>();
        if L == 2 {
            add_products::<2, 5, 6>();
        }
        if R == 2 {
            add_products::<1, 4, 7>();
        }
        if L == 2 && R == 2 {
            add_products::<3, 5, 7>();
        }
    }
}

/// Asks for a piece of the next blocks.
#[inline(always)]
fn ahead<const L: usize, const R: usize>(left: *const f32, right: *const f32, piece: usize) {
    let start = BLOCK + piece * PIECE;
    for line in 0..SIDE {
        if line < L * LINES {
            prefetch(left.wrapping_add(start + line * LINE));
        }
        if line < R * LINES {
            prefetch(right.wrapping_add(start + line * LINE));
        }
    }
}
