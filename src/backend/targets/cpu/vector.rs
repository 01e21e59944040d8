//! A register of f32, under one name for each instruction set, so that what is computed is written once and comes out as it was written: what
//! a compiler makes of loops over arrays depends on their length and on what it unrolled first, by factors of two to eight.

use std::ops::{Add, Div, Mul, Sub};

// `half::bf16` is written out: `std::arch` has a type of that name too.
use half::f16;

/// How two values become one: a sum, or the larger one.
pub(crate) trait Join {
    /// Of each pair.
    fn of<V: Vector>(a: V, b: V) -> V;
}

/// `a + b`.
pub(crate) struct Plus;

impl Join for Plus {
    #[inline(always)]
    fn of<V: Vector>(a: V, b: V) -> V {
        a + b
    }
}

/// [`Vector::larger`].
pub(crate) struct Larger;

impl Join for Larger {
    #[inline(always)]
    fn of<V: Vector>(a: V, b: V) -> V {
        a.larger(b)
    }
}

/// A register of f32. Values of it must only be made where the processor has its instructions, inside of a function that is compiled for them:
/// [`Math`](super::lanes::Math) sees to both.
pub(crate) trait Vector:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Values in it, 16 at most.
    const COUNT: usize;
    /// How many such registers there are.
    const REGISTERS: usize;

    /// The same value everywhere.
    fn splat(value: f32) -> Self;
    /// # Safety
    /// `COUNT` values can be read.
    unsafe fn load(at: *const f32) -> Self;
    /// # Safety
    /// `COUNT` values can be read.
    unsafe fn load_f16(at: *const f16) -> Self;
    /// # Safety
    /// `COUNT` values can be read.
    unsafe fn load_bf16(at: *const half::bf16) -> Self;
    /// # Safety
    /// `COUNT` values can be written.
    unsafe fn store(self, at: *mut f32);
    /// As [`store`](Self::store), past the caches where the processor can: what it holds there is not read first. Other threads see it after
    /// [`fence`](super::rows::fence).
    ///
    /// # Safety
    /// `COUNT` values can be written, and `at` is a multiple of 16 bytes.
    unsafe fn store_past_caches(self, at: *mut f32);
    /// `self · b + c`, rounded once where that is one instruction.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `other` where it is larger, else `self`: a NaN in `other` is passed over.
    fn larger(self, other: Self) -> Self;
    /// `limit` where `self` is below; NaN stays NaN.
    fn at_least(self, limit: f32) -> Self;
    /// `limit` where `self` is above; NaN stays NaN.
    fn at_most(self, limit: f32) -> Self;
    /// The low bits of the value as an exponent: 2ⁿ of n + 127, which is 0 for −127 and ∞ for 128; beyond it is rubbish.
    fn low_bits_as_exponent(self) -> Self;

    /// `values`, as many as fit, behind them `fill`.
    #[inline(always)]
    fn load_some(values: &[f32], fill: f32) -> Self {
        if values.len() == Self::COUNT {
            // SAFETY: they are as many.
            return unsafe { Self::load(values.as_ptr()) };
        }
        let mut all = [fill; 16];
        all[..values.len()].copy_from_slice(values);
        // SAFETY: sixteen values.
        unsafe { Self::load(all.as_ptr()) }
    }

    /// As many as fit into `values`.
    #[inline(always)]
    fn store_some(self, values: &mut [f32]) {
        if values.len() == Self::COUNT {
            // SAFETY: they are as many.
            return unsafe { self.store(values.as_mut_ptr()) };
        }
        let mut all = [0.0; 16];
        // SAFETY: sixteen values.
        unsafe { self.store(all.as_mut_ptr()) };
        values.copy_from_slice(&all[..values.len()]);
    }

    /// Its values as one: the second half joins the first, until one is left.
    fn joined<J: Join>(self) -> f32;

    /// The polynomial of these coefficients, the highest power's first.
    #[inline(always)]
    fn polynomial<const N: usize>(self, coefficients: [f32; N]) -> Self {
        let mut value = Self::splat(coefficients[0]);
        for &coefficient in &coefficients[1..] {
            value = value.mul_add(self, Self::splat(coefficient));
        }
        value
    }
}

/// A register of which as many as it has values hold a square.
pub(crate) trait Square: Vector {
    /// `COUNT` registers.
    type Columns: IntoIterator<Item = Self>;

    /// The columns of a square of rows that are `stride` apart.
    ///
    /// # Safety
    /// `COUNT` values of as many rows can be read.
    unsafe fn columns(from: *const f32, stride: usize) -> Self::Columns;
}

/// A register, its operators and the rest.
macro_rules! vector {
    ($(#[$about:meta])* $name:ident($register:ty), $count:literal of $registers:literal, [$splat:expr, $load:expr, $store:expr, $past_caches:expr], [$load_f16:expr, $load_bf16:expr],
     [$add:expr, $sub:expr, $mul:expr, $div:expr], $mul_add:expr, $larger:expr, [$at_least:expr, $at_most:expr],
     $low_bits_as_exponent:expr, $($rest:item)*) => {
        $(#[$about])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name($register);

        vector!(operator $name, Add, add, $add);
        vector!(operator $name, Sub, sub, $sub);
        vector!(operator $name, Mul, mul, $mul);
        vector!(operator $name, Div, div, $div);

        // SAFETY, of every call: values of this type are only made where the processor has the instructions.
        #[allow(unused_unsafe, clippy::redundant_closure_call, reason = "one macro for intrinsics and plain operators")]
        impl Vector for $name {
            const COUNT: usize = $count;
            const REGISTERS: usize = $registers;
            #[inline(always)]
            fn splat(value: f32) -> Self {
                Self(unsafe { $splat(value) })
            }
            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                Self(unsafe { $load(at) })
            }
            #[inline(always)]
            unsafe fn load_f16(at: *const f16) -> Self {
                Self(unsafe { $load_f16(at) })
            }
            #[inline(always)]
            unsafe fn load_bf16(at: *const half::bf16) -> Self {
                Self(unsafe { $load_bf16(at) })
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                unsafe { $store(at, self.0) }
            }
            #[inline(always)]
            unsafe fn store_past_caches(self, at: *mut f32) {
                unsafe { $past_caches(at, self.0) }
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                Self(unsafe { $mul_add(self.0, b.0, c.0) })
            }
            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                Self(unsafe { $larger(self.0, other.0) })
            }
            #[inline(always)]
            fn at_least(self, limit: f32) -> Self {
                Self(unsafe { $at_least(self.0, Self::splat(limit).0) })
            }
            #[inline(always)]
            fn at_most(self, limit: f32) -> Self {
                Self(unsafe { $at_most(self.0, Self::splat(limit).0) })
            }
            #[inline(always)]
            fn low_bits_as_exponent(self) -> Self {
                Self(unsafe { $low_bits_as_exponent(self.0) })
            }
            $(#[inline(always)]
            $rest)*
        }
    };
    (operator $name:ident, $operator:ident, $method:ident, $do:expr) => {
        #[allow(unused_unsafe, clippy::redundant_closure_call, reason = "as above")]
        impl $operator for $name {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $do(self.0, other.0) })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// `_mm_stream_ps` in the encoding of AVX: an older processor that mixes the two waits.
    ///
    /// # Safety
    /// The processor must have AVX; the rest is as for [`Vector::store_past_caches`].
    #[inline(always)]
    unsafe fn stream(at: *mut f32, values: __m128) {
        // SAFETY: the caller's promise.
        unsafe {
            std::arch::asm!("vmovntps [{}], {}", in(reg) at, in(xmm_reg) values, options(nostack, preserves_flags))
        }
    }

    // Of two operands the comparing instructions return the second where one of them is NaN.
    vector!(
        /// AVX-512F.
        F32x16(__m512), 16 of 32, [_mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, |at: *mut f32, a| {
            stream(at, _mm512_castps512_ps128(a));
            stream(at.add(4), _mm512_extractf32x4_ps::<1>(a));
            stream(at.add(8), _mm512_extractf32x4_ps::<2>(a));
            stream(at.add(12), _mm512_extractf32x4_ps::<3>(a))
        }],
        [
            |at: *const f16| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
            |at: *const half::bf16| _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())), 16))
        ],
        [_mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps], _mm512_fmadd_ps,
        |a, b| _mm512_max_ps(b, a), [|a, b| _mm512_max_ps(b, a), |a, b| _mm512_min_ps(b, a)],
        |a| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))),
        fn joined<J: Join>(self) -> f32 {
            let high = unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))) };
            J::of(F32x8(unsafe { _mm512_castps512_ps256(self.0) }), F32x8(high)).joined::<J>()
        }
        fn load_some(values: &[f32], fill: f32) -> Self {
            let count = mask(values, Self::COUNT);
            // SAFETY, of the read: so many values are there, and no other is touched.
            Self(unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), count as __mmask16, values.as_ptr()) })
        }
        fn store_some(self, values: &mut [f32]) {
            let count = mask(values, Self::COUNT);
            // SAFETY, of the write: as above.
            unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), count as __mmask16, self.0) }
        }
    );

    vector!(
        /// AVX2, FMA and F16C.
        F32x8(__m256), 8 of 16, [_mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, |at: *mut f32, a| {
            stream(at, _mm256_castps256_ps128(a));
            stream(at.add(4), _mm256_extractf128_ps::<1>(a))
        }],
        [
            |at: *const f16| _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            |at: *const half::bf16| _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())), 16))
        ],
        [_mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps], _mm256_fmadd_ps,
        |a, b| _mm256_max_ps(b, a), [|a, b| _mm256_max_ps(b, a), |a, b| _mm256_min_ps(b, a)],
        |a| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))),
        fn joined<J: Join>(self) -> f32 {
            let [low, high] = unsafe { [_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0)] };
            J::of(F32x4(low), F32x4(high)).joined::<J>()
        }
    );

    vector!(
        /// SSE2, which every processor of the architecture has.
        F32x4(__m128), 4 of 16, [_mm_set1_ps, _mm_loadu_ps, _mm_storeu_ps, _mm_stream_ps],
        [
            |at: *const f16| {
                let [a, b, c, d] = at.cast::<[f16; 4]>().read_unaligned().map(f16::to_f32);
                _mm_setr_ps(a, b, c, d)
            },
            |at: *const half::bf16| _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(at.cast())))
        ],
        [_mm_add_ps, _mm_sub_ps, _mm_mul_ps, _mm_div_ps], |a, b, c| _mm_add_ps(_mm_mul_ps(a, b), c),
        |a, b| _mm_max_ps(b, a), [|a, b| _mm_max_ps(b, a), |a, b| _mm_min_ps(b, a)],
        |a| _mm_castsi128_ps(_mm_slli_epi32::<23>(_mm_castps_si128(a))),
        fn joined<J: Join>(self) -> f32 {
            let pairs = J::of(self, Self(unsafe { _mm_movehl_ps(self.0, self.0) }));
            let second = Self(unsafe { _mm_shuffle_ps::<1>(pairs.0, pairs.0) });
            unsafe { _mm_cvtss_f32(J::of(pairs, second).0) }
        }
    );

    /// A bit for each value, of which a register has room for so many.
    #[inline(always)]
    fn mask(values: &[f32], room: usize) -> u32 {
        assert!(values.len() <= room);
        (1 << values.len()) - 1
    }

    impl Square for F32x4 {
        type Columns = [Self; 4];

        #[inline(always)]
        unsafe fn columns(from: *const f32, stride: usize) -> [Self; 4] {
            // SAFETY: the caller's promise; every processor of the architecture has the instructions.
            unsafe {
                let [mut a, mut b, mut c, mut d] = std::array::from_fn(|row| Self::load(from.add(row * stride)));
                _MM_TRANSPOSE4_PS(&mut a.0, &mut b.0, &mut c.0, &mut d.0);
                [a, b, c, d]
            }
        }
    }

    impl Square for F32x8 {
        type Columns = [Self; 8];

        /// Squares of four in both halves: the upper four rows in the lower halves, the others in the higher ones.
        #[inline(always)]
        unsafe fn columns(from: *const f32, stride: usize) -> [Self; 8] {
            // SAFETY: the caller's promise.
            unsafe {
                let four = |first: usize| {
                    let [a, b, c, d] = std::array::from_fn(|row| {
                        let [low, high] = [row, row + 4].map(|row| _mm_loadu_ps(from.add(row * stride + first)));
                        _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
                    });
                    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                    let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                    [
                        _mm256_shuffle_ps::<0x44>(ab, cd),
                        _mm256_shuffle_ps::<0xee>(ab, cd),
                        _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                        _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
                    ]
                };
                let ([a, b, c, d], [e, f, g, h]) = (four(0), four(4));
                [a, b, c, d, e, f, g, h].map(Self)
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{F32x4 as Baseline, F32x8, F32x16};

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::super::neon::widen;
    use super::*;

    vector!(
        /// NEON, which every processor of the architecture has.
        F32x4(float32x4_t), 4 of 32, [vdupq_n_f32, vld1q_f32, vst1q_f32, vst1q_f32],
        [
            |at: *const f16| widen(vld1_u16(at.cast())),
            |at: *const half::bf16| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.cast())))
        ],
        [vaddq_f32, vsubq_f32, vmulq_f32, vdivq_f32], |a, b, c| vfmaq_f32(c, a, b),
        vmaxnmq_f32, [vmaxq_f32, vminq_f32],
        |a| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vreinterpretq_s32_f32(a))),
        fn joined<J: Join>(self) -> f32 {
            let pairs = J::of(self, Self(unsafe { vextq_f32::<2>(self.0, self.0) }));
            let second = Self(unsafe { vextq_f32::<1>(pairs.0, pairs.0) });
            unsafe { vgetq_lane_f32::<0>(J::of(pairs, second).0) }
        }
    );

    impl Square for F32x4 {
        type Columns = [Self; 4];

        #[inline(always)]
        unsafe fn columns(from: *const f32, stride: usize) -> [Self; 4] {
            // SAFETY: the caller's promise; every processor of the architecture has the instructions.
            unsafe {
                let [a, b, c, d]: [Self; 4] = std::array::from_fn(|row| Self::load(from.add(row * stride)));
                let pairs = |a, b| [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(|pairs| vreinterpretq_f64_f32(pairs));
                let ([even_ab, odd_ab], [even_cd, odd_cd]) = (pairs(a.0, b.0), pairs(c.0, d.0));
                let columns = [
                    vtrn1q_f64(even_ab, even_cd),
                    vtrn1q_f64(odd_ab, odd_cd),
                    vtrn2q_f64(even_ab, even_cd),
                    vtrn2q_f64(odd_ab, odd_cd),
                ];
                columns.map(|column| Self(vreinterpretq_f32_f64(column)))
            }
        }
    }
}
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::F32x4 as Baseline;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod single {
    use super::*;

    vector!(
        /// One value.
        F32x1(f32), 1 of 16, [|value| value, |at: *const f32| *at, |at: *mut f32, value| *at = value, |at: *mut f32, value| *at = value],
        [|at: *const f16| (*at).to_f32(), |at: *const half::bf16| (*at).to_f32()],
        [|a: f32, b: f32| a + b, |a: f32, b: f32| a - b, |a: f32, b: f32| a * b, |a: f32, b: f32| a / b],
        |a: f32, b: f32, c: f32| a * b + c,
        |a: f32, b: f32| if b > a { b } else { a },
        [|a: f32, b: f32| if b > a { b } else { a }, |a: f32, b: f32| if b < a { b } else { a }],
        |a: f32| f32::from_bits(a.to_bits() << 23),
        fn joined<J: Join>(self) -> f32 {
            self.0
        }
    );

    impl Square for F32x1 {
        type Columns = [Self; 1];

        unsafe fn columns(from: *const f32, _: usize) -> [Self; 1] {
            // SAFETY: the caller's promise.
            [unsafe { Self::load(from) }]
        }
    }
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) use single::F32x1 as Baseline;
