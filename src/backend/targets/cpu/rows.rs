//! A float tensor seen as rows of its last axis: the shape every norm-like kernel works on.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::lanes::{self, Elementwise, Math};
use super::vector::Vector;
use super::{prefetch_far, prefetch_to_write};
use crate::process::prefer_large_pages;

/// Below this many elements the work is done before another thread has woken up.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// Bytes from which a result goes past the caches: none keeps so much, and to go through them its old content would have to be read first.
const PAST_CACHES: usize = 32 << 20;

/// An f32 tensor in the memory of the CPU.
pub(crate) trait RowTensor: Sync + Sized {
    /// Whether the memory of results has mostly been used before. The pages of new memory are in the caches when they are written first: the
    /// system has just cleared them.
    const REUSES_MEMORY: bool;
    /// What is made of new values: a tensor, or the values alone.
    type Output;

    /// Its axes.
    fn shape(&self) -> Shape;
    /// The same values with their elements in order: copied only if they are strided.
    fn contiguous(&self) -> Self;
    /// The whole buffer, of which a view may be a part.
    fn buffer(&self) -> &[f32];
    /// Where in the buffer the first element is.
    fn offset(&self) -> usize;
    /// So many values of a result, to be overwritten.
    fn stale(count: usize) -> Vec<f32> {
        zeros(count)
    }
    /// Takes over `data`.
    fn output(data: Vec<f32>, shape: Shape) -> Self::Output;
}

/// A tensor, contiguous, as rows.
pub(crate) struct Rows<T> {
    tensor: T,
    offset: usize,
    width: usize,
    elements: usize,
}

impl<T: RowTensor> Rows<T> {
    /// Views `tensor` as rows of its last axis; copies it only if it is strided.
    pub(crate) fn new(tensor: &T) -> Self {
        let shape = tensor.shape();
        Self::of_width(tensor, shape[shape.num_dims() - 1])
    }

    /// Views `tensor` as rows of so many elements, whatever its axes; copies it only if it is strided.
    pub(crate) fn of_width(tensor: &T, width: usize) -> Self {
        let tensor = tensor.contiguous();
        let (offset, elements) = (tensor.offset(), tensor.shape().num_elements());
        Self { tensor, offset, width, elements }
    }

    /// Every element, in order.
    pub(crate) fn all(&self) -> &[f32] {
        &self.tensor.buffer()[self.offset..self.offset + self.elements]
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        let start = self.offset + index * self.width;
        &self.tensor.buffer()[start..start + self.width]
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.elements.checked_div(self.width).unwrap_or(0)
    }

    /// A tensor of the same shape, each row computed by `kernel(math, index, ahead, row, out)`, in parallel when it pays. `out` holds something
    /// to be overwritten. The kernel asks for what lies ahead while it computes, as [`Ahead`] says.
    ///
    /// The kernel's closure must say `#[inline(always)]`, for the reason given at [`lanes::vectorised`].
    #[inline(always)]
    pub(crate) fn map(&self, kernel: impl Fn(Math, usize, Ahead, &[f32], &mut [f32]) + Sync) -> T::Output {
        let data = self.all();
        let width = self.width.max(1);
        let mut out = T::stale(data.len());
        let past_caches = self.past_caches();
        let run = |first: usize, data: &[f32], out: &mut [f32]| {
            lanes::vectorised(
                #[inline(always)]
                |math| {
                    let rows = data.len() / width;
                    for (index, (row, out)) in data.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
                        let ahead = Ahead { distance: if index + 1 < rows { width } else { 0 }, past_caches };
                        kernel(math, first + index, ahead, row, out);
                    }
                },
            );
            if past_caches {
                fence();
            }
        };
        if data.len() < PARALLEL_ELEMENTS {
            run(0, data, &mut out);
        } else {
            let block = self.block();
            let blocks = data.par_chunks(block * width).zip(out.par_chunks_mut(block * width));
            blocks.enumerate().for_each(|(index, (data, out))| run(index * block, data, out));
        }
        T::output(out, self.tensor.shape())
    }

    /// As [`map`](Self::map), to two tensors: `kernel(math, index, ahead, row, first, second)`.
    #[inline(always)]
    pub(crate) fn map_to_two(
        &self,
        kernel: impl Fn(Math, usize, Ahead, &[f32], &mut [f32], &mut [f32]) + Sync,
    ) -> (T::Output, T::Output) {
        let data = self.all();
        let width = self.width.max(1);
        let (mut one, mut two) = (T::stale(data.len()), T::stale(data.len()));
        let past_caches = self.past_caches();
        let run = |first: usize, data: &[f32], one: &mut [f32], two: &mut [f32]| {
            lanes::vectorised(
                #[inline(always)]
                |math| {
                    let rows = data.len() / width;
                    let outs = one.chunks_exact_mut(width).zip(two.chunks_exact_mut(width));
                    for (index, (row, (one, two))) in data.chunks_exact(width).zip(outs).enumerate() {
                        let ahead = Ahead { distance: if index + 1 < rows { width } else { 0 }, past_caches };
                        kernel(math, first + index, ahead, row, one, two);
                    }
                },
            );
            if past_caches {
                fence();
            }
        };
        if data.len() < PARALLEL_ELEMENTS {
            run(0, data, &mut one, &mut two);
        } else {
            let block = self.block();
            let outs = one.par_chunks_mut(block * width).zip(two.par_chunks_mut(block * width));
            let blocks = data.par_chunks(block * width).zip(outs).enumerate();
            blocks.for_each(|(index, (data, (one, two)))| run(index * block, data, one, two));
        }
        (T::output(one, self.tensor.shape()), T::output(two, self.tensor.shape()))
    }

    /// Whether results of this size go past the caches.
    fn past_caches(&self) -> bool {
        T::REUSES_MEMORY && size_of_val(self.all()) >= PAST_CACHES
    }

    /// Rows that a thread takes at a time.
    fn block(&self) -> usize {
        self.count().div_ceil(4 * rayon::current_num_threads()).max(1)
    }
}

/// `x` in memory of its own.
pub(crate) fn copied<T: RowTensor>(x: &T) -> T::Output {
    Rows::new(x).map(
        #[inline(always)]
        |_, _, _, row, out| out.copy_from_slice(row),
    )
}

/// Copies values in parallel, past the caches.
///
/// # Panics
/// If there are not as many of both.
pub(crate) fn copy_past_caches(from: &[f32], to: &mut [f32]) {
    /// An element as it is.
    struct Same;

    impl Elementwise<1, 1> for Same {
        #[inline(always)]
        fn of<V: Vector>(&self, x: [V; 1]) -> [V; 1] {
            x
        }
    }
    /// As many as make a long row.
    const ROW: usize = 1 << 12;

    assert_eq!(from.len(), to.len());
    let ahead = Ahead { distance: ROW, past_caches: true };
    let rows = from.par_chunks(ROW).zip(to.par_chunks_mut(ROW)).with_min_len(PARALLEL_ELEMENTS / ROW);
    rows.for_each(|(row, out)| {
        lanes::vectorised(
            #[inline(always)]
            |math| math.map(&Same, [row], [&mut *out], ahead.fetch([row], [])),
        );
        fence();
    });
}

/// Values that a row's kernel may hold beside it, which the nearest caches have room for.
pub(crate) const HELD: usize = 4096;

/// What a row's kernel is told of memory. While a row is computed the memory would have nothing to do: so after each few elements those of
/// the next are asked for, the values to be read and the place of those to be written. All at once would be waited for.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// How many elements further the next row is; 0 if there is none.
    distance: usize,
    /// Whether results go past the caches.
    past_caches: bool,
}

/// What is asked for with each cache line of a row.
#[derive(Clone, Copy)]
pub(crate) struct Fetch<const IN: usize, const OUT: usize> {
    rows: [Next; IN],
    outs: [Next; OUT],
    /// Whether what is written goes past the caches.
    pub(super) past_caches: bool,
}

/// The row after another, to be asked for.
#[derive(Clone, Copy)]
struct Next(Option<*const f32>);

impl Ahead {
    /// There is no next row.
    #[inline(always)]
    pub(super) fn nowhere() -> Self {
        Self { distance: 0, past_caches: false }
    }

    /// Whether what the next pass over a row of this length reads is held beside it: the result cannot be that, what goes past the caches
    /// would come back from memory.
    #[inline(always)]
    pub(crate) fn holds(self, length: usize) -> bool {
        self.past_caches && length <= HELD
    }

    /// For a result that is read again at once: it stays in the caches.
    #[inline(always)]
    pub(crate) fn kept(self) -> Self {
        Self { past_caches: false, ..self }
    }

    /// What asks for the next row's lines of `rows`, which will be read, and of `outs`, which will be overwritten.
    #[inline(always)]
    pub(crate) fn fetch<const IN: usize, const OUT: usize>(
        self,
        rows: [&[f32]; IN],
        outs: [&[f32]; OUT],
    ) -> Fetch<IN, OUT> {
        let (rows, outs) = (rows.map(|row| self.next(row)), outs.map(|out| self.next(out)));
        Fetch { rows, outs, past_caches: self.past_caches }
    }

    /// What follows on `row`.
    #[inline(always)]
    fn next(self, row: &[f32]) -> Next {
        Next((self.distance > 0).then(|| row.as_ptr().wrapping_add(self.distance)))
    }
}

impl<const IN: usize, const OUT: usize> Fetch<IN, OUT> {
    /// After the cache line that begins at the element `at`: asks for the same line of the next rows.
    #[inline(always)]
    pub(super) fn after(&self, at: usize) {
        for row in self.rows {
            row.fetch(at);
        }
        if !self.past_caches {
            for out in self.outs {
                out.fetch_to_write(at);
            }
        }
    }
}

impl Next {
    /// Asks for the cache line of the element at `at`.
    #[inline(always)]
    fn fetch(self, at: usize) {
        if let Some(start) = self.0 {
            prefetch_far(start.wrapping_add(at));
        }
    }

    /// As [`fetch`](Self::fetch) for values that will be overwritten.
    #[inline(always)]
    fn fetch_to_write(self, at: usize) {
        if let Some(start) = self.0 {
            prefetch_to_write(start.wrapping_add(at));
        }
    }
}

/// What went past the caches is seen by other threads before what is written after this.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of the architecture has it.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// So many zeros, in memory new from the allocator.
pub(crate) fn zeros(count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    // What is large has not been touched yet.
    prefer_large_pages(&mut values);
    values
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::FlexTensor;

    use super::*;
    use crate::targets::flex::tensor;

    fn counted(shape: [usize; 2]) -> FlexTensor {
        tensor((0..shape[0] * shape[1]).map(|i| i as f32).collect(), Shape::from(shape))
    }

    #[test]
    fn whole_rows_of_a_larger_buffer_are_not_copied() {
        let whole = counted([5, 4]);
        let view = whole.narrow(0, 1, 3);
        let rows = Rows::new(&view);
        assert_eq!((rows.count(), rows.row(2)), (3, &[12.0, 13.0, 14.0, 15.0][..]));
        assert_eq!(rows.all().as_ptr(), whole.storage::<f32>()[4..].as_ptr());
    }

    #[test]
    fn strided_views_are_read_in_order() {
        let whole = counted([3, 4]);
        assert_eq!(Rows::new(&whole.narrow(1, 1, 2)).all(), [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
        assert_eq!(Rows::new(&whole.transpose(0, 1)).row(1), [1.0, 5.0, 9.0]);
    }

    #[test]
    fn every_row_is_mapped_once_with_its_own_index() {
        for [rows, width] in [[1, 1], [7, 3], [1, 1 << 16], [1 << 16, 1], [257, 131], [0, 4], [4, 0]] {
            let x = counted([rows, width]);
            let y = Rows::new(&x).map(|_, index, _, row, out| {
                out.iter_mut().zip(row).for_each(|(out, x)| *out = x - (index * width) as f32);
            });
            let expected: Vec<f32> = (0..rows).flat_map(|_| (0..width).map(|i| i as f32)).collect();
            assert_eq!(Rows::new(&y).all(), expected);
            let (same, indices) = Rows::new(&x).map_to_two(|_, index, _, row, same, indices| {
                same.copy_from_slice(row);
                indices.fill(index as f32);
            });
            assert_eq!(Rows::new(&same).all(), Rows::new(&x).all());
            let expected: Vec<f32> = (0..rows).flat_map(|row| vec![row as f32; width]).collect();
            assert_eq!(Rows::new(&indices).all(), expected);
        }
    }

    #[test]
    fn what_goes_past_the_caches_is_the_same_wherever_it_begins() {
        // A prime width: rows begin at every multiple of 4 bytes, and end in part of a register.
        let x = counted([PAST_CACHES / 4 / 1021 + 1, 1021]);
        let rows = Rows::new(&x);
        #[inline(always)]
        fn kernel(math: Math, ahead: Ahead, row: &[f32], out: &mut [f32]) {
            assert!(ahead.past_caches);
            math.map(&lanes::Sum, [row, row], [out], ahead.fetch([row], []));
        }
        let doubled = rows.map(
            #[inline(always)]
            |math, _, ahead, row, out| kernel(math, ahead, row, out),
        );
        let (same, other) = rows.map_to_two(
            #[inline(always)]
            |math, _, ahead, row, one, two| {
                kernel(math, ahead, row, one);
                kernel(math, ahead, row, two);
            },
        );
        for made in [doubled, same, other] {
            let made = Rows::new(&made);
            assert!(rows.all().iter().zip(made.all()).all(|(x, y)| 2.0 * x == *y));
        }
    }

    #[test]
    fn copies_past_the_caches_are_whole() {
        for count in [0, 1, 4095, 100_003] {
            let from: Vec<f32> = (0..count).map(|i| i as f32).collect();
            let mut to = vec![f32::NAN; count];
            copy_past_caches(&from, &mut to);
            assert_eq!(from, to);
        }
    }

    #[test]
    fn a_softmax_that_goes_past_the_caches_is_the_same() {
        // Rows that are held beside, and one that is too long for that.
        for width in [1021, 5003] {
            let count = PAST_CACHES / 4 / width + 1;
            let x =
                tensor((0..count * width).map(|i| (i * 7919 % 2003) as f32 * 0.01).collect(), [count, width].into());
            let rows = Rows::new(&x);
            let softmax = rows.map(
                #[inline(always)]
                |math, _, ahead, row, out| {
                    assert!(ahead.past_caches);
                    math.softmax_into(row, 0.7, ahead, out);
                },
            );
            let softmax = Rows::new(&softmax);
            let mut expected = vec![0.0; width];
            for index in 0..count {
                lanes::vectorised(
                    #[inline(always)]
                    |math| math.softmax_into(rows.row(index), 0.7, Ahead::nowhere(), &mut expected),
                );
                assert!(softmax.row(index) == expected, "row {index} of {width}");
            }
        }
    }
}
