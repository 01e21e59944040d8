//! Rows of a table by their numbers: token embeddings, in the format the table is stored in.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorMetadata};

use super::{primitive, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// The rows `ids` of `weight`.
///
/// # Shapes
/// `weight` `[vocabulary, hidden]` of any float dtype or packed, `ids` `[tokens]` → `[tokens, hidden]` in f32 (f64 if the table is).
pub fn embedding<B: KernelBackend>(weight: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    tensor(<B as KernelBackend>::embedding(primitive(weight), ids.into_primitive()))
}

/// The values of a weight as floats: a packed one in f32, any other as it is.
pub fn unpacked<B: KernelBackend>(weight: Tensor<B, 2>) -> Tensor<B, 2> {
    tensor(B::unpacked(primitive(weight)))
}

pub(crate) fn reference<B: Backend>(weight: FloatTensor<B>, ids: IntTensor<B>) -> FloatTensor<B> {
    let rows = B::float_select(weight, 0, ids);
    match rows.dtype() {
        DType::F32 | DType::F64 => rows,
        _ => B::float_cast(rows, DType::F32.into()),
    }
}

pub(crate) mod autodiff {
    //! A frozen table has no gradient, and may be packed; one that is trained is Burn's to differentiate.
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::tensor::backend::AutodiffBackend;

    use super::*;
    use crate::targets::autodiff::{Tracked, is_tracked};

    pub(crate) fn embedding<B: KernelBackend, C: CheckpointStrategy>(
        weight: Tracked<B>,
        ids: IntTensor<B>,
    ) -> Tracked<B> {
        if is_tracked::<B>(&weight) {
            return reference::<Autodiff<B, C>>(weight, ids);
        }
        <Autodiff<B, C> as AutodiffBackend>::from_inner(<B as KernelBackend>::embedding(weight.primitive, ids))
    }
}

#[cfg(feature = "flex")]
pub(crate) mod flex {
    //! Each row widened on its own, rows in parallel.
    use burn::tensor::Shape;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::targets::flex::weights::{OnWeights, Weights, on_weights};
    use crate::targets::flex::{memory, tensor};

    /// Values below which another thread is not worth waking.
    const PARALLEL_VALUES: usize = 1 << 17;

    pub(crate) fn forward(weight: FlexTensor, ids: FlexTensor) -> FlexTensor {
        let ids: Vec<usize> = ids.into_data().iter::<i64>().map(|id| id as usize).collect();
        let width = burn::tensor::TensorMetadata::shape(&weight)[1];
        let out = if ids.is_empty() || width == 0 { Vec::new() } else { on_weights(&weight, Rows(&ids)) };
        tensor(out, Shape::from(vec![ids.len(), width]))
    }

    struct Rows<'i>(&'i [usize]);

    impl OnWeights for Rows<'_> {
        type Output = Vec<f32>;

        fn run<'a>(self, weights: impl Weights<'a>) -> Vec<f32> {
            let width = weights.inputs();
            let mut out = memory::stale(self.0.len() * width);
            let row = |(id, out): (&usize, &mut [f32])| weights.rows(*id..id + 1).widen(0..width, out);
            if out.len() < PARALLEL_VALUES {
                self.0.iter().zip(out.chunks_exact_mut(width)).for_each(row);
            } else {
                self.0.par_iter().zip(out.par_chunks_exact_mut(width)).with_min_len(32).for_each(row);
            }
            out
        }
    }

    /// The values of a weight in whichever form it is stored.
    pub(crate) fn unpacked(weight: FlexTensor) -> FlexTensor {
        let shape = burn::tensor::TensorMetadata::shape(&weight);
        let out = if shape.num_elements() == 0 { Vec::new() } else { on_weights(&weight, Whole) };
        tensor(out, shape)
    }

    struct Whole;

    impl OnWeights for Whole {
        type Output = Vec<f32>;

        fn run<'a>(self, weights: impl Weights<'a>) -> Vec<f32> {
            let mut out = memory::stale(weights.outputs() * weights.inputs());
            weights.widen(0..weights.inputs(), &mut out);
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, View, on_every_backend, read};

    fn rows_of_any_format_are_read<B: TrainBackend>(device: &B::Device) {
        for dtype in [DType::F32, DType::F16, DType::BF16].into_iter().filter(|&dtype| B::supports_dtype(device, dtype))
        {
            let table = Array::random(1, &[7, 5]).stored(dtype);
            let ids = Tensor::<B, 1, Int>::from_data(TensorData::from([6, 0, 6]), device);
            let weight = tensor::<B::InnerBackend, 2>(table.on::<B::InnerBackend>(device, dtype, View::Plain));
            for rows in [
                embedding(weight.clone(), ids.clone().inner()),
                embedding(Tensor::<B, 2>::from_inner(weight.clone()), ids.clone()).inner(),
            ] {
                assert_eq!(rows.dtype(), DType::F32);
                let expected: Vec<f64> =
                    [6, 0, 6].iter().flat_map(|&id| table.values[id * 5..(id + 1) * 5].to_vec()).collect();
                assert_eq!(read::<B::InnerBackend>(primitive(rows)).values, expected, "{dtype:?}");
            }
        }
    }

    on_every_backend!(rows_of_any_format_are_read);
}
