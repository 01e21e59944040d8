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
use crate::ops::linear;

impl<B: FusionBackend + KernelBackend> KernelBackend for Fusion<B> {
    fn reads_weights(device: &Self::Device, dtype: DType) -> bool {
        B::reads_weights(device, dtype)
    }

    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        if !linear::cube::takes((x.dtype, &x.shape), weight.dtype) {
            return linear::reference::<Self>(x, weight, bias);
        }
        let shape = Shape::from(vec![x.shape[0], weight.shape[0]]);
        let run = |[x, weight]: [FloatTensor<B>; 2]| <B as KernelBackend>::linear(x, weight, None);
        let product = whole::<B, 2>("firebrick linear", [x, weight], shape, DType::F32, run);
        linear::with_bias::<Self>(product, bias)
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
