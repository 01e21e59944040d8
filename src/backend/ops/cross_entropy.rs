//! The loss of a language model head: cross entropy of `hidden · Wᵀ`, a chunk of rows at a time, so that `[rows, vocabulary]` never exists.
//! The gradient with respect to `hidden` is taken in the same pass (as in Liger kernels, Hsu et al. 2024), because the logits are there.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, Slice, Tensor, TensorData, TensorMetadata};

use super::{in_dtype_of, primitive, tensor};
use crate::KernelBackend;

/// Logits held at a time, about: 64 MB in f32. The weight is read twice for each chunk.
const CHUNK_LOGITS: usize = 16 << 20;
/// Chunks are made of whole so many rows, which products take at a time.
const UNIT: usize = 32;

/// Rows whose logits exist at a time. However many there are: chunks of one size have their memory one after the other.
pub fn rows_of_chunk(vocabulary: usize) -> usize {
    (CHUNK_LOGITS / vocabulary.max(1)).clamp(1, 1024).next_multiple_of(UNIT)
}

/// The token each row should predict, and how much it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// Token ids, one for each row of `hidden`.
    pub ids: Arc<[u32]>,
    /// Factors on the rows' losses.
    pub weights: Arc<[f32]>,
}

impl Targets {
    /// Targets of as many rows as there are ids.
    ///
    /// # Panics
    /// If there are not as many weights.
    pub fn new(ids: impl Into<Arc<[u32]>>, weights: impl Into<Arc<[f32]>>) -> Self {
        let (ids, weights) = (ids.into(), weights.into());
        assert_eq!(ids.len(), weights.len(), "targets: {} ids, {} weights", ids.len(), weights.len());
        Self { ids, weights }
    }
}

/// `Σ weightᵢ · −log softmax(hiddenᵢ · Wᵀ)[idᵢ]`.
///
/// # Shapes
/// `hidden` `[rows, in]`, `weight` `[vocabulary, in]` of any float dtype → `[1]`. The weight is treated as frozen.
///
/// # Panics
/// If the shapes do not fit or an id is outside the vocabulary.
pub fn cross_entropy_of_linear<B: KernelBackend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: &Targets,
) -> Tensor<B, 1> {
    assert_fits(&hidden, &weight, targets);
    tensor(B::cross_entropy_of_linear(primitive(hidden), primitive(weight), targets))
}

/// The loss and its gradient with respect to `hidden`, with the logits of so many rows at a time: by other chunks than
/// [`rows_of_chunk`]'s, for who wants to know what these save.
///
/// # Shapes
/// As those of [`cross_entropy_of_linear`]; the gradient is `[rows, in]`.
///
/// # Panics
/// If the shapes do not fit, an id is outside the vocabulary, or `chunk` is 0.
pub fn loss_and_gradient<B: KernelBackend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: &Targets,
    chunk: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    assert_fits(&hidden, &weight, targets);
    let (loss, gradient) = by_chunks::<B>(primitive(hidden), primitive(weight), targets, chunk);
    (tensor(loss), tensor(gradient))
}

/// A head and targets for rows like these. A device that is asked for a logit outside of the vocabulary need not notice.
fn assert_fits<B: KernelBackend>(hidden: &Tensor<B, 2>, weight: &Tensor<B, 2>, targets: &Targets) {
    let ([rows, inputs], [vocabulary, weight_inputs]) = (hidden.dims(), weight.dims());
    assert!(inputs == weight_inputs, "cross_entropy: hidden {:?}, weight {:?}", hidden.dims(), weight.dims());
    assert!(rows == targets.ids.len(), "cross_entropy: {rows} rows, {} targets", targets.ids.len());
    assert!(targets.ids.iter().all(|&id| (id as usize) < vocabulary), "cross_entropy: an id outside {vocabulary}");
}

pub(crate) fn forward<B: KernelBackend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: &Targets,
) -> FloatTensor<B> {
    let chunk = rows_of_chunk(weight.shape()[0]);
    chunked::<B>(hidden, weight, targets, chunk, false).0
}

pub(crate) fn forward_with_gradient<B: KernelBackend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: &Targets,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let chunk = rows_of_chunk(weight.shape()[0]);
    by_chunks::<B>(hidden, weight, targets, chunk)
}

fn by_chunks<B: KernelBackend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: &Targets,
    chunk: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (loss, gradients) = chunked::<B>(hidden.clone(), weight, targets, chunk, true);
    (loss, if gradients.is_empty() { B::float_mul_scalar(hidden, 0.0.into()) } else { B::float_cat(gradients, 0) })
}

fn chunked<B: KernelBackend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: &Targets,
    chunk: usize,
    gradient: bool,
) -> (FloatTensor<B>, Vec<FloatTensor<B>>) {
    let (rows, inputs) = (hidden.shape()[0], hidden.shape()[1]);
    let device = B::float_device(&hidden);
    let mut loss = B::float_zeros(Shape::from(vec![1]), &device, hidden.dtype().into());
    let mut gradients = Vec::new();
    for start in (0..rows).step_by(chunk) {
        let range = start..rows.min(start + chunk);
        let part = B::float_slice(hidden.clone(), &[Slice::from(range.clone()), Slice::from(0..inputs)]);
        let logits = <B as KernelBackend>::linear(part, weight.clone(), None);
        let (ids, weights) = (&targets.ids[range.clone()], &targets.weights[range]);
        let (part_of_loss, d_logits) = B::cross_entropy_of_logits(logits, ids, weights, gradient);
        loss = B::float_add(loss, part_of_loss);
        gradients.extend(d_logits.map(|d_logits| B::linear_backward_input(d_logits, weight.clone())));
    }
    (loss, gradients)
}

/// The loss of rows of logits, `[1]`, and its gradient: `weight · (softmax − one-hot)`.
pub(crate) fn reference_of_logits<B: KernelBackend>(
    logits: FloatTensor<B>,
    ids: &[u32],
    weights: &[f32],
    gradient: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let (device, count) = (B::float_device(&logits), ids.len());
    let weights = B::float_from_data(TensorData::new(weights.to_vec(), [count, 1]), &device);
    let weights = in_dtype_of::<B>(weights, &logits);
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let ids = B::int_from_data(TensorData::new(ids, [count, 1]).convert::<B::IntElem>(), &device);

    let shifted = B::float_sub(logits.clone(), B::float_max_dim(logits, 1));
    let exponentials = B::float_exp(shifted.clone());
    let sums = B::float_sum_dim(exponentials.clone(), 1);
    let chosen = B::float_gather(1, shifted, ids.clone());
    let losses = B::float_mul(B::float_sub(B::float_log(sums.clone()), chosen), weights.clone());
    let loss = B::float_reshape(B::float_sum(losses), Shape::from(vec![1]));
    let d_logits = gradient.then(|| {
        let d_logits = B::float_mul(exponentials, B::float_div(weights.clone(), sums));
        B::float_scatter_add(1, d_logits, ids, B::float_neg(weights))
    });
    (loss, d_logits)
}

#[cfg(feature = "flex")]
pub(crate) mod flex {
    //! In the memory of the logits: the exponentials with their sum, and the gradient over them; rows in parallel.
    use burn::tensor::{Shape, TensorMetadata};
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::targets::cpu::lanes;
    use crate::targets::flex::tensor;

    pub(crate) fn of_logits(
        logits: FlexTensor,
        ids: &[u32],
        weights: &[f32],
        gradient: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        let (rows, width) = (ids.len(), logits.shape()[1]);
        // Not another handle to them, which would make writing copy them.
        let mut logits = if logits.layout().is_contiguous() { logits } else { logits.to_contiguous() };
        let start = logits.layout().start_offset();
        let values = &mut logits.storage_mut::<f32>()[start..start + rows * width];
        let targets = ids.par_iter().zip(weights);
        let losses = values.par_chunks_exact_mut(width).zip(targets).map(|(row, (&id, &weight))| {
            lanes::vectorised(
                #[inline(always)]
                |math| {
                    let target = id as usize;
                    let (shift, chosen) = (math.max_but_nan(row), row[target]);
                    let sum = math.exponentials_in_place(row, 1.0, shift);
                    if gradient {
                        let factor = weight / sum;
                        row.iter_mut().for_each(|value| *value *= factor);
                        row[target] -= weight;
                    }
                    f64::from(weight) * f64::from(sum.ln() - (chosen - shift))
                },
            )
        });
        // Collected, so that they are added in one order whoever computed them.
        let loss: f64 = losses.collect::<Vec<_>>().into_iter().sum();
        (tensor(vec![loss as f32], Shape::from(vec![1])), gradient.then_some(logits))
    }
}

pub(crate) mod autodiff {
    //! The gradient is computed with the loss and only scaled on the way back.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::{Tracked, is_tracked};

    #[derive(Debug)]
    struct CrossEntropyOfLinear;

    impl<B: KernelBackend> Backward<B, 1> for CrossEntropyOfLinear {
        type State = FloatTensor<B>;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            if let [Some(node)] = ops.parents {
                let grad = B::float_reshape(grad, Shape::from(vec![1, 1]));
                grads.register::<B>(node.id, B::float_mul(ops.state, grad));
            }
        }
    }

    pub(crate) fn cross_entropy_of_linear<B: KernelBackend, C: CheckpointStrategy>(
        hidden: Tracked<B>,
        weight: Tracked<B>,
        targets: &Targets,
    ) -> Tracked<B> {
        assert!(!is_tracked::<B>(&weight), "cross_entropy: the head is treated as frozen but asks for a gradient");
        match CrossEntropyOfLinear.prepare::<C>([hidden.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (loss, gradient) =
                    B::cross_entropy_of_linear_with_gradient(hidden.primitive, weight.primitive, targets);
                prep.finish(gradient, loss)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::cross_entropy_of_linear(hidden.primitive, weight.primitive, targets))
            }
        }
    }
}

#[cfg(test)]
mod tests;
