//! burn-fusion: records ops and runs them together later. An op without a line here is the reference, recorded op by op, so that
//! its element-wise parts are still fused into one launch; an op with one is recorded whole and run by the backend underneath.

use std::fmt;
use std::marker::PhantomData;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};

use crate::KernelBackend;
use crate::ops::attention::{self, AttentionLayout};
use crate::ops::{linear, lora_linear, rope, write_rows};

impl<B: FusionBackend + KernelBackend> KernelBackend for Fusion<B> {
    fn reads_weights(device: &Self::Device, dtype: DType) -> bool {
        B::reads_weights(device, dtype)
    }

    fn rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        if !rope::cube::takes(&[x.dtype, cos.dtype, sin.dtype], x.shape.num_elements()) {
            return rope::reference::<Self>(x, cos, sin);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        let run = |[x, cos, sin]: [FloatTensor<B>; 3]| B::rope(x, cos, sin);
        whole::<B, 3>("firebrick rope", [x, cos, sin], shape, dtype, run)
    }
    fn rope_into(
        target: FloatTensor<Self>,
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        start: usize,
    ) -> FloatTensor<Self> {
        if !rope::cube::takes(&[target.dtype, x.dtype, cos.dtype, sin.dtype], x.shape.num_elements()) {
            return Self::write_rows(target, Self::rope(x, cos, sin), start);
        }
        let (shape, dtype) = (target.shape.clone(), target.dtype);
        let run = move |[target, x, cos, sin]: [FloatTensor<B>; 4]| B::rope_into(target, x, cos, sin, start);
        whole::<B, 4>("firebrick rope_into", [target, x, cos, sin], shape, dtype, run)
    }
    fn write_rows(target: FloatTensor<Self>, rows: FloatTensor<Self>, start: usize) -> FloatTensor<Self> {
        if !write_rows::cube::takes(target.dtype, rows.dtype, rows.shape.num_elements()) {
            return write_rows::reference::<Self>(target, rows, start);
        }
        let (shape, dtype) = (target.shape.clone(), target.dtype);
        let run = move |[target, rows]: [FloatTensor<B>; 2]| B::write_rows(target, rows, start);
        whole::<B, 2>("firebrick write_rows", [target, rows], shape, dtype, run)
    }

    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        let formats = ((x.dtype, &x.shape), (weight.dtype, &weight.shape));
        if !linear::cube::takes(formats.0, formats.1, bias.as_ref().map(|bias| bias.dtype)) {
            return linear::reference::<Self>(x, weight, bias);
        }
        let (shape, name) = (Shape::from(vec![x.shape[0], weight.shape[0]]), "firebrick linear");
        match bias {
            None => {
                let run = |[x, weight]: [FloatTensor<B>; 2]| <B as KernelBackend>::linear(x, weight, None);
                whole::<B, 2>(name, [x, weight], shape, DType::F32, run)
            }
            Some(bias) => {
                let run = |[x, weight, bias]: [FloatTensor<B>; 3]| <B as KernelBackend>::linear(x, weight, Some(bias));
                whole::<B, 3>(name, [x, weight, bias], shape, DType::F32, run)
            }
        }
    }
    fn lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        low: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let formats = ((x.dtype, &x.shape), (weight.dtype, &weight.shape));
        if !linear::cube::takes(formats.0, formats.1, bias.as_ref().map(|bias| bias.dtype))
            || !linear::cube::adds((low.dtype, &low.shape), b.dtype)
        {
            return lora_linear::reference::<Self>(x, weight, bias, low, b, scale);
        }
        let (shape, name) = (Shape::from(vec![x.shape[0], weight.shape[0]]), "firebrick lora_linear");
        match bias {
            None => {
                let run =
                    move |[x, weight, low, b]: [FloatTensor<B>; 4]| B::lora_linear(x, weight, None, low, b, scale);
                whole::<B, 4>(name, [x, weight, low, b], shape, DType::F32, run)
            }
            Some(bias) => {
                let run = move |[x, weight, bias, low, b]: [FloatTensor<B>; 5]| {
                    B::lora_linear(x, weight, Some(bias), low, b, scale)
                };
                whole::<B, 5>(name, [x, weight, bias, low, b], shape, DType::F32, run)
            }
        }
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: &AttentionLayout,
    ) -> FloatTensor<Self> {
        if !attention::cube::takes(&q.shape, [q.dtype, k.dtype, v.dtype], layout) {
            return attention::reference::<Self>(q, k, v, layout);
        }
        let (shape, layout) = (q.shape.clone(), layout.clone());
        let run = move |[q, k, v]: [FloatTensor<B>; 3]| <B as KernelBackend>::attention(q, k, v, &layout);
        whole::<B, 3>("firebrick attention", [q, k, v], shape, DType::F32, run)
    }
}

/// Records `run` as one op with one output.
fn whole<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    shape: Shape,
    dtype: DType,
    run: impl Fn([FloatTensor<B>; N]) -> FloatTensor<B> + Send + Sync + 'static,
) -> FusionTensor<B::FusionRuntime> {
    let client = inputs[0].client.clone();
    // Before the inputs become descriptions: the streams they were recorded on must be known.
    let streams = OperationStreams::with_inputs(inputs.iter());
    let output = TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let ir = CustomOpIr::new(name, &inputs.map(FusionTensor::into_ir), &[output]);
    let operation = Whole::<B, _, N> { ir: ir.clone(), run, backend: PhantomData };
    client.register(streams, OperationIr::Custom(ir), operation).output()
}

struct Whole<B, F, const N: usize> {
    ir: CustomOpIr,
    run: F,
    backend: PhantomData<fn() -> B>,
}

impl<B, F, const N: usize> fmt::Debug for Whole<B, F, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ir.fmt(f)
    }
}

impl<B, F, const N: usize> Operation<B::FusionRuntime> for Whole<B, F, N>
where
    B: FusionBackend,
    F: Fn([FloatTensor<B>; N]) -> FloatTensor<B> + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>) {
        let (inputs, [output]) = self.ir.as_fixed::<N, 1>();
        let result = (self.run)(inputs.each_ref().map(|input| handles.get_float_tensor::<B>(input)));
        handles.register_float_tensor::<B>(&output.id, result);
    }
}
