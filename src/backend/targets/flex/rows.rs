//! A float tensor seen as rows of its last axis: the shape every norm-like kernel works on.

use burn::tensor::{Shape, TensorData, TensorMetadata};
use burn_flex::FlexTensor;
use pulp::Arch;
use rayon::prelude::*;

/// Below this many elements the work is done before another thread has woken up.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// An f32 tensor, contiguous, as rows.
pub(crate) struct Rows {
    tensor: FlexTensor,
    offset: usize,
    width: usize,
}

impl Rows {
    /// Views `tensor` as rows of its last axis; copies it only if it is strided.
    pub(crate) fn new(tensor: &FlexTensor) -> Self {
        let tensor = tensor.to_contiguous();
        let shape = tensor.shape();
        let width = shape[shape.num_dims() - 1];
        let offset = tensor.layout().start_offset();
        Self { tensor, offset, width }
    }

    /// Every element, in order.
    pub(crate) fn all(&self) -> &[f32] {
        // `storage` is the whole buffer, of which a view may be a part.
        &self.tensor.storage::<f32>()[self.offset..self.offset + self.tensor.shape().num_elements()]
    }

    /// One row.
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        let start = self.offset + index * self.width;
        &self.tensor.storage::<f32>()[start..start + self.width]
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.tensor.shape().num_elements().checked_div(self.width).unwrap_or(0)
    }

    /// A tensor of the same shape, each row computed by `kernel(index, row, out)`, vectorised for this processor, in parallel when it pays.
    pub(crate) fn map(&self, kernel: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> FlexTensor {
        let data = self.all();
        let mut out = vec![0.0; data.len()];
        let arch = Arch::new();
        if data.len() < PARALLEL_ELEMENTS {
            arch.dispatch(|| {
                let rows = data.chunks_exact(self.width.max(1)).zip(out.chunks_exact_mut(self.width.max(1)));
                rows.enumerate().for_each(|(index, (row, out))| kernel(index, row, out));
            });
        } else {
            let block = self.count().div_ceil(4 * rayon::current_num_threads()).max(1);
            let blocks = data.par_chunks(block * self.width).zip(out.par_chunks_mut(block * self.width));
            blocks.enumerate().for_each(|(at, (data, out))| {
                arch.dispatch(|| {
                    let rows = data.chunks_exact(self.width).zip(out.chunks_exact_mut(self.width));
                    rows.enumerate().for_each(|(index, (row, out))| kernel(at * block + index, row, out));
                });
            });
        }
        tensor(out, self.tensor.shape())
    }
}

/// An f32 tensor that takes over `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}
