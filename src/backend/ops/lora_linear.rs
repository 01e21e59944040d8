//! The linear map under an adapter (Hu et al. 2021): a frozen weight, and beside it two narrow matrices that are trained.
//!
//! The narrow product `x · Aᵀ` is a [`linear`](super::linear) of its own; what this op saves is passes over the wide result, to which
//! everything else is added as it is made.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::linear::{assert_fits, linear};
use super::{primitive, tensor};
use crate::KernelBackend;

/// `x · Wᵀ + b + scale · (low_x · Aᵀ) · Bᵀ`.
///
/// `low_x` is what the adapter sees where that is not `x` itself: `x` after dropout.
///
/// # Shapes
/// `x` and `low_x` `[rows, in]`, `weight` `[out, in]` of any float dtype, `bias` `[out]`, `a` `[rank, in]`, `b` `[out, rank]`
/// → `[rows, out]` in `x`'s dtype.
///
/// # Panics
/// If the shapes do not fit.
pub fn lora_linear<B: KernelBackend>(
    x: Tensor<B, 2>,
    low_x: Option<Tensor<B, 2>>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    [a, b]: [Tensor<B, 2>; 2],
    scale: f64,
) -> Tensor<B, 2> {
    let ([out, inputs], [rank, a_in], [b_out, b_rank]) = (weight.dims(), a.dims(), b.dims());
    assert_fits("lora_linear", &x, &weight, bias.as_ref());
    assert!(
        a_in == inputs && b_out == out && rank == b_rank,
        "lora_linear: weight {:?}, a {:?}, b {:?}",
        weight.dims(),
        a.dims(),
        b.dims()
    );
    if let Some(low_x) = &low_x {
        assert_eq!(low_x.dims(), x.dims(), "lora_linear: low_x {:?}, x {:?}", low_x.dims(), x.dims());
    }
    let low = linear(low_x.unwrap_or_else(|| x.clone()), a, None);
    let bias = bias.map(primitive);
    tensor(B::lora_linear(primitive(x), primitive(weight), bias, primitive(low), primitive(b), scale))
}

pub(crate) fn reference<B: KernelBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    low: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f64,
) -> FloatTensor<B> {
    let base = <B as KernelBackend>::linear(x, weight, bias);
    if low.shape().num_elements() == 0 || b.shape().num_elements() == 0 {
        return base;
    }
    // The scale goes on the narrow side.
    let low = B::float_mul_scalar(low, scale.into());
    B::float_add(base, <B as KernelBackend>::linear(low, b, None))
}

pub(crate) mod autodiff {
    //! The gradient keeps the weight for `x`, `b` for `low` and `low` for `b`: a frozen weight never receives one.
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::{Tracked, is_tracked};

    #[derive(Debug)]
    struct LoraLinear;

    #[derive(Clone, Debug)]
    struct Kept<B: Backend> {
        weight: Option<FloatTensor<B>>,
        b: Option<FloatTensor<B>>,
        low: Option<FloatTensor<B>>,
        scale: f64,
    }

    impl<B: KernelBackend> Backward<B, 3> for LoraLinear {
        type State = Kept<B>;

        fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, low_node, b_node] = ops.parents;
            let Kept { weight, b, low, scale } = ops.state;
            let grad = grads.consume::<B>(&ops.node);
            if let (Some(node), Some(low)) = (b_node, low) {
                let low = B::float_mul_scalar(low, scale.into());
                grads.register::<B>(node.id, B::linear_backward_weight(low, grad.clone()));
            }
            if let (Some(node), Some(b)) = (low_node, b) {
                let gradient = B::linear_backward_input(grad.clone(), b);
                grads.register::<B>(node.id, B::float_mul_scalar(gradient, scale.into()));
            }
            if let (Some(node), Some(weight)) = (x_node, weight) {
                grads.register::<B>(node.id, B::linear_backward_input(grad, weight));
            }
        }
    }

    pub(crate) fn lora_linear<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        weight: Tracked<B>,
        bias: Option<Tracked<B>>,
        low: Tracked<B>,
        b: Tracked<B>,
        scale: f64,
    ) -> Tracked<B> {
        if is_tracked::<B>(&weight) || bias.as_ref().is_some_and(is_tracked::<B>) {
            // A base that is trained beside its adapter: the parts have every gradient.
            return reference::<Autodiff<B, C>>(x, weight, bias, low, b, scale);
        }
        let kept = Kept {
            weight: is_tracked::<B>(&x).then(|| weight.primitive.clone()),
            b: is_tracked::<B>(&low).then(|| b.primitive.clone()),
            low: is_tracked::<B>(&b).then(|| low.primitive.clone()),
            scale,
        };
        let bias = bias.map(|bias| bias.primitive);
        let output = B::lora_linear(x.primitive, weight.primitive, bias, low.primitive, b.primitive, scale);
        match LoraLinear.prepare::<C>([x.node, low.node, b.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, View, agrees, compare, gradients_agree, on_every_backend, read};

    const SCALE: f64 = 1.75;

    /// `x`, `weight`, `low`, `b`, and a bias if there is a fifth.
    fn oracle(inputs: &[&Array]) -> Array {
        let [x, weight, low, b] = inputs[..4] else { panic!("four inputs or five") };
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        let mut values = Vec::new();
        for row in 0..x.shape[0] {
            for out in 0..weight.shape[0] {
                let line = |of: &Array, at: usize| of.values[at * of.width()..(at + 1) * of.width()].to_vec();
                let bias = inputs.get(4).map_or(0.0, |bias| bias.values[out]);
                let update = SCALE * dot(&line(low, row), &line(b, out));
                values.push(dot(&line(x, row), &line(weight, out)) + bias + update);
            }
        }
        Array::new(&[x.shape[0], weight.shape[0]], values)
    }

    fn arrays(rows: usize, inputs: usize, outputs: usize, rank: usize, dtype: DType) -> [Array; 5] {
        let weight = Array::random(2, &[outputs, inputs]).stored(dtype);
        let (low, b) = (Array::random(3, &[rows, rank]), Array::random(4, &[outputs, rank]));
        [Array::random(1, &[rows, inputs]), weight, low, b, Array::random(5, &[outputs])]
    }

    fn run<B: KernelBackend>(t: &[FloatTensor<B>]) -> FloatTensor<B> {
        B::lora_linear(t[0].clone(), t[1].clone(), t.get(4).cloned(), t[2].clone(), t[3].clone(), SCALE)
    }

    fn every_number_of_rows_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for rows in [1, 2, 7, 8, 9, 25, 40] {
            for (inputs, outputs, rank) in [(1, 1, 1), (3, 5, 2), (130, 67, 4), (515, 643, 70)] {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    if !B::supports_dtype(device, dtype) {
                        continue;
                    }
                    let [x, weight, low, b, bias] = &arrays(rows, inputs, outputs, rank, dtype);
                    let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(&t);
                    for inputs in [&[x, weight, low, b][..], &[x, weight, low, b, bias]] {
                        agrees::<B::InnerBackend>(device, inputs, 3e-5, op, &oracle(inputs));
                    }
                }
            }
        }
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for (rows, inputs, outputs, rank) in [(1, 1, 1, 1), (3, 5, 7, 2), (33, 40, 67, 8)] {
            for dtype in [DType::F32, DType::F16] {
                if !B::supports_dtype(device, dtype) {
                    continue;
                }
                let [x, weight, low, b, bias] = &arrays(rows, inputs, outputs, rank, dtype);
                let op = |t: Vec<FloatTensor<B>>| run::<B>(&t);
                gradients_agree::<B>(device, &[x, weight, low, b, bias], &[0, 2, 3], 5e-5, op, oracle);
            }
            // Without a bias, and with a base that is trained too.
            let [x, weight, low, b, _] = &arrays(rows, inputs, outputs, rank, DType::F32);
            let op = |t: Vec<FloatTensor<B>>| run::<B>(&t);
            gradients_agree::<B>(device, &[x, weight, low, b], &[0, 1, 2, 3], 5e-5, op, oracle);
        }
    }

    fn the_adapter_may_see_another_x<B: TrainBackend>(device: &B::Device) {
        let random = |seed, shape: [usize; 2]| Array::random(seed, &shape);
        let on =
            |array: &Array| tensor::<B::InnerBackend, 2>(array.on::<B::InnerBackend>(device, DType::F32, View::Plain));
        let (x, other, weight) = (random(1, [3, 20]), random(2, [3, 20]), random(3, [11, 20]));
        let (a, b) = (random(4, [2, 20]), random(5, [11, 2]));
        let low = super::super::linear::linear(on(&other), on(&a), None);
        let expected = oracle(&[&x, &weight, &read::<B::InnerBackend>(primitive(low)), &b]);
        let run = |low_x: Option<&Array>| {
            let result = lora_linear(on(&x), low_x.map(on), on(&weight), None, [on(&a), on(&b)], SCALE);
            read::<B::InnerBackend>(primitive(result))
        };
        compare("another x", &run(Some(&other)), &expected, 1e-5);
        compare("its own x", &run(Some(&x)), &run(None), 0.0);
        assert_ne!(run(None).values, run(Some(&other)).values);
    }

    fn nan_in_a_row_stays_in_that_row<B: TrainBackend>(device: &B::Device) {
        for rows in [3, 30] {
            for input in [0, 2] {
                let mut arrays = arrays(rows, 37, 19, 5, DType::F32);
                let width = arrays[input].width();
                arrays[input].values[2 * width - 1] = f64::NAN;
                let inputs = arrays.each_ref();
                let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(&t);
                agrees::<B::InnerBackend>(device, &inputs, 1e-5, op, &oracle(&inputs));
            }
        }
    }

    fn empty_axes_give_empty_results_or_the_rest<B: TrainBackend>(device: &B::Device) {
        for (rows, inputs, outputs, rank) in [(0, 3, 5, 2), (2, 0, 5, 2), (2, 3, 0, 2), (2, 3, 5, 0), (40, 3, 5, 0)] {
            let arrays = arrays(rows, inputs, outputs, rank, DType::F32);
            let tensors: Vec<_> =
                arrays.iter().map(|array| array.on::<B::InnerBackend>(device, DType::F32, View::Plain)).collect();
            let inputs = arrays.each_ref();
            compare("empty", &read::<B::InnerBackend>(run::<B::InnerBackend>(&tensors)), &oracle(&inputs), 1e-6);
        }
    }

    on_every_backend!(
        every_number_of_rows_agrees_with_the_oracle,
        gradients_agree_with_differences,
        the_adapter_may_see_another_x,
        nan_in_a_row_stays_in_that_row,
        empty_axes_give_empty_results_or_the_rest,
    );
}
