//! The most a device can do: bytes read, bytes copied, operations, each measured with work that does nothing else. A share of it says how
//! much there is left to gain, and a result above it that something was not timed.

use std::time::{Duration, Instant};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Shape, Slice, TensorMetadata};

use crate::KernelBackend;
use crate::device::DeviceKind;
#[cfg(feature = "cpu")]
use crate::packed::Format;

/// Bytes beyond which a buffer is in no cache: larger ones are as fast as this. WebGPU promises no larger ones.
const LARGEST: usize = 128 << 20;
/// Calls are added until they take so long together.
const LONG_ENOUGH: Duration = Duration::from_millis(20);
/// The best of so many attempts: nothing but other work on the machine makes one slower than another.
const ATTEMPTS: usize = 5;
/// The widest product of square matrices that is tried, and how long one may take.
const WIDEST: usize = 8192;
const LONGEST_PRODUCT: Duration = Duration::from_millis(300);

/// Bytes read in a second over and over from a buffer of so many, the cache's speed where that holds them.
///
/// # Panics
/// If the device fails.
pub fn read_bandwidth<B: KernelBackend>(device: &B::Device, kind: DeviceKind, bytes: usize) -> f64 {
    let elements = elements(bytes);
    #[cfg(feature = "cpu")]
    if kind == DeviceKind::Cpu {
        let values = vec![1.0f32; elements];
        return bytes_of(elements) / cpu::seconds_to_read::<B>(&values);
    }
    let _ = kind;
    let x = random::<B>(device, Shape::from([elements]));
    bytes_of(elements) / synchronised::<B>(device, || B::float_sum(x.clone()))
}

/// Memory that a processor reads from its beginning to its end, on all threads and once, as it does the weights of a model for each token.
pub struct Reading(Vec<f32>);

impl Reading {
    /// Of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(vec![1.0; (bytes / size_of::<f32>()).max(1)])
    }

    /// Reads all of it.
    pub fn read<B: KernelBackend>(&self) -> f32 {
        #[cfg(feature = "cpu")]
        let sum = |()| cpu::sum_by_all(&self.0);
        #[cfg(not(feature = "cpu"))]
        let sum = |()| self.0.iter().sum::<f32>();
        B::concurrently(vec![()], sum).into_iter().sum()
    }
}

/// Bytes read and written in a second by copies of a buffer, both together so many bytes; on a CPU through the caches or past them, whichever
/// is faster.
///
/// # Panics
/// If the device fails.
pub fn copy_bandwidth<B: KernelBackend>(device: &B::Device, kind: DeviceKind, bytes: usize) -> f64 {
    let elements = elements(bytes / 2);
    let x = random::<B>(device, Shape::from([elements.div_ceil(1024), elements.min(1024)]));
    let moved = 2.0 * bytes_of(elements.div_ceil(1024) * elements.min(1024));
    let copied = moved / synchronised::<B>(device, || B::copied(x.clone()));
    #[cfg(feature = "cpu")]
    if kind == DeviceKind::Cpu {
        return copied.max(2.0 * bytes_of(elements) / cpu::seconds_to_copy_past_caches::<B>(elements));
    }
    let _ = kind;
    copied
}

/// Operations in a second: of a CPU, multiplications and additions that never leave its registers, on all threads, fused in f32, or of bytes
/// for packed weights; elsewhere the best product of square matrices in `dtype`.
///
/// # Panics
/// If the device fails.
pub fn operations<B: KernelBackend>(device: &B::Device, kind: DeviceKind, dtype: DType) -> f64 {
    #[cfg(feature = "cpu")]
    if kind == DeviceKind::Cpu {
        return if Format::of(dtype).is_some() { cpu::operations_of_bytes() } else { cpu::operations() };
    }
    let _ = kind;
    let (mut best, mut width) = (0.0f64, 256);
    while width <= WIDEST {
        let [x, y] = [0; 2].map(|_| B::float_cast(random::<B>(device, Shape::from([width, width])), dtype.into()));
        let seconds = synchronised::<B>(device, || B::float_matmul(x.clone(), y.clone()));
        best = best.max(2.0 * (width as f64).powi(3) / seconds);
        if seconds * 8.0 > LONGEST_PRODUCT.as_secs_f64() {
            break;
        }
        width *= 2;
    }
    best
}

fn elements(bytes: usize) -> usize {
    (bytes.min(LARGEST) / size_of::<f32>()).max(1)
}

fn bytes_of(elements: usize) -> f64 {
    (elements * size_of::<f32>()) as f64
}

fn random<B: KernelBackend>(device: &B::Device, shape: Shape) -> FloatTensor<B> {
    B::float_random(shape, Distribution::Uniform(-1.0, 1.0), device, DType::F32.into())
}

/// Seconds of a call of `op` by [`fastest`]; the clock stops when the device has finished.
fn synchronised<B: KernelBackend>(device: &B::Device, op: impl Fn() -> FloatTensor<B>) -> f64 {
    fastest(|calls| {
        let mut kept = Kept::<B>::new(device);
        (0..calls).for_each(|_| kept.keep(std::hint::black_box(op())));
        kept.finish().expect("the device finishes");
    })
}

/// Results of a device that may run behind the host, kept until they are computed: what is dropped before that may never be.
pub struct Kept<B: KernelBackend> {
    device: B::Device,
    results: Vec<FloatTensor<B>>,
    bytes: usize,
}

impl<B: KernelBackend> Kept<B> {
    /// Bytes of results that wait together.
    const MOST: usize = 256 << 20;

    /// None yet.
    pub fn new(device: &B::Device) -> Self {
        Self { device: device.clone(), results: Vec::new(), bytes: 0 }
    }

    /// One more. Waits for the device when many have come together.
    ///
    /// # Panics
    /// If the device fails.
    pub fn keep(&mut self, result: FloatTensor<B>) {
        self.bytes += result.shape().num_elements() * result.dtype().size();
        self.results.push(result);
        if self.bytes > Self::MOST {
            self.finish().expect("the device finishes");
        }
    }

    /// Waits until all are computed, and keeps the last.
    ///
    /// # Errors
    /// If the device fails.
    pub fn finish(&mut self) -> Result<(), String> {
        if let Err(problem) = B::sync(&self.device) {
            // candle cannot wait for Metal; it does so where a value is read, and all that was asked for before has been computed then.
            let last = self.results.last().ok_or_else(|| problem.to_string())?.clone();
            let first = vec![Slice::from(0..1); last.rank()];
            let value = burn::tensor::try_read_sync(B::float_into_data(B::float_slice(last, &first)));
            value.ok_or_else(|| problem.to_string())?.map_err(|problem| problem.to_string())?;
        }
        self.bytes = 0;
        self.results.drain(..self.results.len().saturating_sub(1));
        Ok(())
    }

    /// The last one.
    pub fn last(&self) -> Option<&FloatTensor<B>> {
        self.results.last()
    }
}

/// Seconds of one of the calls that `work` makes, the least of some attempts.
fn fastest(mut work: impl FnMut(usize)) -> f64 {
    let mut timed = |calls: usize| {
        let begun = Instant::now();
        work(calls);
        begun.elapsed().as_secs_f64()
    };
    timed(1);
    let mut calls = 1;
    while timed(calls) < LONG_ENOUGH.as_secs_f64() && calls < 1 << 20 {
        calls *= 2;
    }
    (0..ATTEMPTS).map(|_| timed(calls)).fold(f64::INFINITY, f64::min) / calls as f64
}

#[cfg(feature = "cpu")]
mod cpu {
    //! On all threads of the pool that the kernels use.
    use std::hint::black_box;

    use rayon::prelude::*;

    use crate::KernelBackend;
    #[cfg(target_arch = "x86_64")]
    use crate::targets::cpu::InstructionSet;
    use crate::targets::cpu::{ByteProducts, copy_past_caches, lanes};

    /// By one thread or by all of them, whichever is faster: what a small cache holds is read before another thread has woken up.
    pub(super) fn seconds_to_read<B: KernelBackend>(values: &[f32]) -> f64 {
        let by_one = |calls| {
            for _ in 0..calls {
                black_box(black_box(values).chunks(PIECE).map(sum).sum::<f32>());
            }
        };
        let by_all = |calls| {
            for _ in 0..calls {
                black_box(sum_by_all(black_box(values)));
            }
        };
        // From inside the pool, as the ops of a model are called.
        let best = |()| super::fastest(by_one).min(super::fastest(by_all));
        B::concurrently(vec![()], best).into_iter().fold(f64::INFINITY, f64::min)
    }

    pub(super) fn seconds_to_copy_past_caches<B: KernelBackend>(count: usize) -> f64 {
        let from = vec![1.0; count];
        let best = |mut to: Vec<f32>| {
            super::fastest(|calls| (0..calls).for_each(|_| copy_past_caches(black_box(&from), black_box(&mut to))))
        };
        B::concurrently(vec![vec![0.0; count]], best).into_iter().fold(f64::INFINITY, f64::min)
    }

    /// What a thread takes at a time: a late one is not waited for.
    const PART: usize = 1 << 20;
    /// What is read in four streams at a time. Streams further apart may fall on the same lines of a cache and the same banks of memory, all the
    /// way, which takes half of the speed.
    const PIECE: usize = 1 << 16;

    pub(super) fn sum_by_all(values: &[f32]) -> f32 {
        let part = values.len().div_ceil(rayon::current_num_threads()).min(PART);
        values.par_chunks(part).map(|part| part.chunks(PIECE).map(sum).sum::<f32>()).sum()
    }

    fn sum(part: &[f32]) -> f32 {
        let quarter = part.len() / 4;
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| &part[index * quarter..][..quarter]);
        lanes::vectorised(
            #[inline(always)]
            |math| math.sum_of_four([a, b, c, d]) + math.sum(&part[4 * quarter..]),
        )
    }

    /// Operations of a second, on all threads at once.
    pub(super) fn operations() -> f64 {
        let (work, sums) = multiply_add();
        by_all_threads(work, sums)
    }

    /// The same, each of a byte times a byte.
    pub(super) fn operations_of_bytes() -> f64 {
        let (work, products) = multiply_add_bytes();
        by_all_threads(work, products)
    }

    fn by_all_threads(work: fn(usize), products_of_a_turn: usize) -> f64 {
        // Most of a millisecond, beside which waking the threads is nothing.
        const TURNS: usize = 500_000;
        let all = (2 * TURNS * products_of_a_turn * rayon::current_num_threads()) as f64;
        all / super::fastest(|calls| {
            (0..calls).for_each(|_| drop(rayon::broadcast(|_| work(TURNS))));
        })
    }

    /// The loop for this processor, and how many products it adds up in a turn.
    fn multiply_add_bytes() -> (fn(usize), usize) {
        match ByteProducts::detect() {
            // SAFETY, of all: the processor has what they are compiled for.
            #[cfg(target_arch = "x86_64")]
            ByteProducts::Avx512Vnni => (|turns| unsafe { bytes::avx512_vnni(turns) }, 64 * bytes::SUMS),
            #[cfg(target_arch = "x86_64")]
            ByteProducts::AvxVnni => (|turns| unsafe { bytes::avx_vnni(turns) }, 32 * bytes::SUMS),
            #[cfg(target_arch = "x86_64")]
            ByteProducts::Avx2 => (|turns| unsafe { bytes::avx2(turns) }, 32 * bytes::SUMS),
            #[cfg(target_arch = "aarch64")]
            ByteProducts::Dot => (|turns| unsafe { bytes::dot(turns) }, 16 * bytes::SUMS),
            ByteProducts::Portable => (plain_integers, NARROW),
        }
    }

    fn plain_integers(turns: usize) {
        let (factor, summand) = (black_box(3i16), black_box(5i16));
        let mut sums = [black_box(1i16); NARROW];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = sum.wrapping_mul(factor).wrapping_add(summand);
            }
        }
        black_box(sums);
    }

    #[cfg(target_arch = "x86_64")]
    mod bytes {
        use std::arch::x86_64::*;
        use std::hint::black_box;

        /// Registers: enough to hide the latency of a product behind the others.
        pub(super) const SUMS: usize = 12;

        macro_rules! turn_over {
            ($name:ident, $features:literal, $splat:ident, |$sum:ident, $factor:ident| $turn:expr) => {
                #[target_feature(enable = $features)]
                pub(super) fn $name(turns: usize) {
                    let $factor = $splat(black_box(3));
                    let mut sums = [$splat(black_box(1)); SUMS];
                    for _ in 0..turns {
                        for sum in &mut sums {
                            let $sum = *sum;
                            *sum = $turn;
                        }
                    }
                    black_box(sums);
                }
            };
        }
        turn_over!(avx512_vnni, "avx512f,avx512vnni", _mm512_set1_epi32, |sum, factor| {
            _mm512_dpbusd_epi32(sum, factor, factor)
        });
        turn_over!(avx_vnni, "avx2,avxvnni", _mm256_set1_epi32, |sum, factor| {
            _mm256_dpbusd_avx_epi32(sum, factor, factor)
        });
        turn_over!(avx2, "avx2", _mm256_set1_epi32, |sum, factor| _mm256_maddubs_epi16(sum, factor));
    }

    #[cfg(target_arch = "aarch64")]
    mod bytes {
        use std::arch::aarch64::*;
        use std::hint::black_box;

        /// Registers: enough to hide the latency of a product behind the others.
        pub(super) const SUMS: usize = 16;

        #[target_feature(enable = "dotprod")]
        pub(super) fn dot(turns: usize) {
            let factor = vdupq_n_s8(black_box(3));
            let mut sums = [vdupq_n_s32(black_box(1)); SUMS];
            for _ in 0..turns {
                for sum in &mut sums {
                    // SAFETY: this function is compiled for it.
                    *sum = unsafe { crate::targets::cpu::neon::dot::<0>(*sum, factor, factor) };
                }
            }
            black_box(sums);
        }
    }

    /// The loop for this processor, and how many sums it turns over at once.
    fn multiply_add() -> (fn(usize), usize) {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY, of all: called only where the processor has what they are compiled for.
            if InstructionSet::detect() == InstructionSet::Amx {
                // A product of f32 is six of bf16. An instruction is as long as sixteen of the others.
                return (|turns| unsafe { amx(6 * turns / 16) }, MATRICES / 16);
            }
            match InstructionSet::detect() {
                InstructionSet::Avx512 => return (|turns| unsafe { avx512(turns) }, WIDE),
                InstructionSet::Avx2 => return (|turns| unsafe { avx2(turns) }, NARROW),
                _ => {}
            }
        }
        (plain, NARROW)
    }

    /// Twelve registers of AVX-512, and of AVX2: enough to hide the latency of a multiplication behind the others, and few enough to stay
    /// in registers.
    #[cfg(target_arch = "x86_64")]
    const WIDE: usize = 192;
    const NARROW: usize = 96;

    /// Products of bf16 that four instructions of AMX add up.
    #[cfg(target_arch = "x86_64")]
    const MATRICES: usize = 4 * 16 * 16 * 32;

    /// # Safety
    /// AMX is there.
    #[cfg(target_arch = "x86_64")]
    unsafe fn amx(turns: usize) {
        use crate::targets::cpu::amx::{Tiles, add_products};

        // SAFETY: the caller's promise. The registers begin as zeros.
        unsafe {
            let _registers = Tiles::begin();
            for _ in 0..turns {
                add_products::<0, 4, 5>();
                add_products::<1, 4, 5>();
                add_products::<2, 4, 5>();
                add_products::<3, 4, 5>();
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512(turns: usize) {
        turn_over::<WIDE>(turns, f32::mul_add);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(turns: usize) {
        turn_over::<NARROW>(turns, f32::mul_add);
    }

    /// Where no instruction does both, a call of a function would.
    fn plain(turns: usize) {
        turn_over::<NARROW>(turns, |sum, factor, summand| {
            if cfg!(target_arch = "aarch64") { sum.mul_add(factor, summand) } else { sum * factor + summand }
        });
    }

    #[inline(always)]
    fn turn_over<const SUMS: usize>(turns: usize, step: impl Fn(f32, f32, f32) -> f32) {
        let (factor, summand) = (black_box(0.999f32), black_box(0.001f32));
        let mut sums = [black_box(1.0f32); SUMS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = step(*sum, factor, summand);
            }
        }
        black_box(sums);
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::backends::Flex;

    #[test]
    fn a_cache_is_no_slower_than_memory_and_memory_is_no_wonder() {
        let device = Default::default();
        let read = |bytes| read_bandwidth::<Flex>(&device, DeviceKind::Cpu, bytes);
        let (cached, memory) = (read(64 << 10), read(64 << 20));
        assert!(cached > 0.5 * memory, "{cached:e} and {memory:e} bytes a second");
        assert!((1e8..1e13).contains(&memory), "{memory:e} bytes a second");
        let copied = copy_bandwidth::<Flex>(&device, DeviceKind::Cpu, 64 << 20);
        assert!((1e8..1e13).contains(&copied), "{copied:e} bytes a second");
        let of_bytes = Format::Q8.dtype(32);
        let [operations, of_bytes] =
            [DType::F32, of_bytes].map(|dtype| operations::<Flex>(&device, DeviceKind::Cpu, dtype));
        assert!((1e8..1e14).contains(&operations), "{operations:e} operations a second");
        assert!((1e8..1e15).contains(&of_bytes), "{of_bytes:e} operations of bytes a second");
        println!(
            "{cached:.1e} bytes of a cache, {memory:.1e} of memory, {copied:.1e} copied, {operations:.1e} operations, {of_bytes:.1e} of bytes"
        );
    }

    #[test]
    fn a_device_without_a_probe_of_its_own_is_measured_by_products() {
        let operations = operations::<Flex>(&Default::default(), DeviceKind::Software, DType::F32);
        assert!((1e7..1e14).contains(&operations), "{operations:e} operations a second");
    }
}
