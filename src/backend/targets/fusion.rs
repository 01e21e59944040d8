//! burn-fusion: records ops and runs them together later. An op without a line here is the reference, recorded op by op, so that
//! its element-wise parts are still fused into one launch; an op with one is recorded whole and run by the backend underneath.

use std::fmt;
use std::marker::PhantomData;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime, FusionTensor, NoOp, get_client};
use burn_ir::{CustomOpIr, HandleContainer, InitOperationIr, OperationIr, OperationOutput, TensorHandle, TensorIr};

use crate::KernelBackend;
use crate::ops::attention::{self, AttentionLayout};
use crate::ops::{
    add_layer_norm, add_rms_norm, embedding, gelu, layer_norm, linear, linears, lora_linear, norm_rope, rms_norm, rope,
    softmax, swiglu, write_rows,
};
use crate::packed::{Format, Packed};
use crate::targets::cube::rows;

impl<B: FusionBackend + KernelBackend> KernelBackend for Fusion<B> {
    fn reads_weights(device: &Self::Device, dtype: DType) -> bool {
        B::reads_weights(device, dtype)
    }
    fn packed(matrix: Packed, device: &Self::Device) -> FloatTensor<Self> {
        let (client, tensor) = (get_client::<B>(device), B::packed(matrix, device));
        let (shape, dtype) = (tensor.shape(), tensor.dtype());
        let handle = B::float_tensor_handle(tensor);
        let ir = InitOperationIr::create(shape, dtype, || client.register_tensor_handle(handle));
        client.register(OperationStreams::default(), OperationIr::Init(ir), NoOp::<B>::new()).output()
    }
    fn unpacked(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        if Format::of(weight.dtype).is_none() {
            return weight;
        }
        let shape = weight.shape.clone();
        whole::<B, 1>("firebrick unpacked", [weight], shape, DType::F32, |[weight]| B::unpacked(weight))
    }
    fn embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        if !embedding::cube::takes(weight.dtype, ids.dtype) {
            return embedding::reference::<Self>(Self::unpacked(weight), ids);
        }
        let shape = Shape::from(vec![ids.shape[0], weight.shape[1]]);
        // Inputs are handed over as floats, whatever they are.
        let int = |ids: FloatTensor<B>| {
            let shape = ids.shape();
            B::int_tensor(TensorHandle { handle: B::float_tensor_handle(ids), shape })
        };
        let run = move |[weight, ids]: [FloatTensor<B>; 2]| <B as KernelBackend>::embedding(weight, int(ids));
        whole::<B, 2>("firebrick embedding", [weight, ids], shape, DType::F32, run)
    }

    fn rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        if !rope::cube::takes(&[&x, &cos, &sin]) {
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
        if !rope::cube::takes(&[&x, &target, &cos, &sin]) {
            return Self::write_rows(target, Self::rope(x, cos, sin), start);
        }
        let (shape, dtype) = (target.shape.clone(), target.dtype);
        let run = move |[target, x, cos, sin]: [FloatTensor<B>; 4]| B::rope_into(target, x, cos, sin, start);
        whole::<B, 4>("firebrick rope_into", [target, x, cos, sin], shape, dtype, run)
    }
    fn norm_rope(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if !norm_rope::cube::takes(&[&x, &cos, &sin], &weight) {
            return norm_rope::reference::<Self>(x, weight, epsilon, cos, sin);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        let run = move |[x, weight, cos, sin]: [FloatTensor<B>; 4]| B::norm_rope(x, weight, epsilon, cos, sin);
        whole::<B, 4>("firebrick norm_rope", [x, weight, cos, sin], shape, dtype, run)
    }
    fn norm_rope_into(
        target: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        start: usize,
    ) -> FloatTensor<Self> {
        if !norm_rope::cube::takes(&[&x, &target, &cos, &sin], &weight) {
            return Self::write_rows(target, Self::norm_rope(x, weight, epsilon, cos, sin), start);
        }
        let (shape, dtype) = (target.shape.clone(), target.dtype);
        let run = move |[target, x, weight, cos, sin]: [FloatTensor<B>; 5]| {
            B::norm_rope_into(target, x, weight, epsilon, cos, sin, start)
        };
        whole::<B, 5>("firebrick norm_rope_into", [target, x, weight, cos, sin], shape, dtype, run)
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
            return linear::reference::<Self>(x, Self::unpacked(weight), bias);
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
    fn linear_backward_input(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::reference_backward_input::<Self>(grad, Self::unpacked(weight))
    }
    fn linears<const N: usize>(x: FloatTensor<Self>, maps: [linears::Map<Self>; N]) -> [FloatTensor<Self>; N] {
        let formats =
            maps.each_ref().map(|(weight, bias)| (weight.dtype, &weight.shape, bias.as_ref().map(|bias| bias.dtype)));
        if !linears::cube::takes((x.dtype, &x.shape), &formats) {
            return linears::reference::<Self, N>(x, maps);
        }
        let rows = x.shape[0];
        let outputs = maps.each_ref().map(|(weight, _)| (Shape::from(vec![rows, weight.shape[0]]), DType::F32));
        let biased = maps.each_ref().map(|(_, bias)| bias.is_some());
        let inputs = [x].into_iter().chain(maps.into_iter().flat_map(|(weight, bias)| [Some(weight), bias]).flatten());
        whole_of::<B, N>("firebrick linears", inputs.collect(), outputs, move |inputs| {
            let mut inputs = inputs.into_iter();
            let mut next = || inputs.next().expect("an input for each that was recorded");
            let x = next();
            B::linears(x, biased.map(|biased| (next(), biased.then(&mut next))))
        })
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

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        if !rows::takes(&[&x], &[&weight]) {
            return rms_norm::reference::<Self>(x, weight, epsilon);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        whole::<B, 2>("firebrick rms_norm", [x, weight], shape, dtype, move |[x, weight]| {
            <B as KernelBackend>::rms_norm(x, weight, epsilon)
        })
    }

    fn rms_norm_backward_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if !rows::takes(&[&x, &grad], &[&weight]) {
            return rms_norm::reference_backward_input::<Self>(x, weight, grad, epsilon);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        whole::<B, 3>("firebrick rms_norm backward", [x, weight, grad], shape, dtype, move |[x, weight, grad]| {
            <B as KernelBackend>::rms_norm_backward_input(x, weight, grad, epsilon)
        })
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if !rows::takes(&[&x], &[&weight, &bias]) {
            return layer_norm::reference::<Self>(x, weight, bias, epsilon);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        whole::<B, 3>("firebrick layer_norm", [x, weight, bias], shape, dtype, move |[x, weight, bias]| {
            <B as KernelBackend>::layer_norm(x, weight, bias, epsilon)
        })
    }

    fn layer_norm_backward_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if !rows::takes(&[&x, &grad], &[&weight]) {
            return layer_norm::reference_backward_input::<Self>(x, weight, grad, epsilon);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        whole::<B, 3>("firebrick layer_norm backward", [x, weight, grad], shape, dtype, move |[x, weight, grad]| {
            <B as KernelBackend>::layer_norm_backward_input(x, weight, grad, epsilon)
        })
    }

    fn add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if !rows::takes(&[&x, &residual], &[&weight]) {
            return add_rms_norm::reference::<Self>(x, residual, weight, epsilon);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        let outputs = [(shape.clone(), dtype), (shape, dtype)];
        let [first, second] = whole_to::<B, 3, 2>(
            "firebrick add_rms_norm",
            [x, residual, weight],
            outputs,
            move |[x, residual, weight]| <B as KernelBackend>::add_rms_norm(x, residual, weight, epsilon).into(),
        );
        (first, second)
    }

    fn add_layer_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if !rows::takes(&[&x, &residual], &[&weight, &bias]) {
            return add_layer_norm::reference::<Self>(x, residual, weight, bias, epsilon);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        whole::<B, 4>(
            "firebrick add_layer_norm",
            [x, residual, weight, bias],
            shape,
            dtype,
            move |[x, residual, weight, bias]| <B as KernelBackend>::add_layer_norm(x, residual, weight, bias, epsilon),
        )
    }

    fn softmax(x: FloatTensor<Self>, scale: f64, mask: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        if !rows::takes(&[&x], &mask.iter().collect::<Vec<_>>()) {
            return softmax::reference::<Self>(x, scale, mask);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        match mask {
            None => whole::<B, 1>("firebrick softmax", [x], shape, dtype, move |[x]| {
                <B as KernelBackend>::softmax(x, scale, None)
            }),
            Some(mask) => whole::<B, 2>("firebrick softmax", [x, mask], shape, dtype, move |[x, mask]| {
                <B as KernelBackend>::softmax(x, scale, Some(mask))
            }),
        }
    }

    fn softmax_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        if !rows::takes(&[&y, &grad], &[]) {
            return softmax::reference_backward::<Self>(y, grad, scale);
        }
        let (shape, dtype) = (y.shape.clone(), y.dtype);
        whole::<B, 2>("firebrick softmax backward", [y, grad], shape, dtype, move |[y, grad]| {
            <B as KernelBackend>::softmax_backward(y, grad, scale)
        })
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        if !rows::takes_elements(&[&gate, &up], &[]) {
            return swiglu::reference::<Self>(gate, up);
        }
        let (shape, dtype) = (gate.shape.clone(), gate.dtype);
        whole::<B, 2>("firebrick swiglu", [gate, up], shape, dtype, move |[gate, up]| {
            <B as KernelBackend>::swiglu(gate, up)
        })
    }

    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if !rows::takes_elements(&[&gate, &up, &grad], &[]) {
            return swiglu::reference_backward::<Self>(gate, up, grad);
        }
        let (shape, dtype) = (gate.shape.clone(), gate.dtype);
        let outputs = [(shape.clone(), dtype), (shape, dtype)];
        let [first, second] =
            whole_to::<B, 3, 2>("firebrick swiglu backward", [gate, up, grad], outputs, move |[gate, up, grad]| {
                <B as KernelBackend>::swiglu_backward(gate, up, grad).into()
            });
        (first, second)
    }

    fn gelu(x: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        if !rows::takes_elements(&[&x], &bias.iter().collect::<Vec<_>>()) {
            return gelu::reference::<Self>(x, bias);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        match bias {
            None => whole::<B, 1>("firebrick gelu", [x], shape, dtype, move |[x]| <B as KernelBackend>::gelu(x, None)),
            Some(bias) => whole::<B, 2>("firebrick gelu", [x, bias], shape, dtype, move |[x, bias]| {
                <B as KernelBackend>::gelu(x, Some(bias))
            }),
        }
    }

    fn gelu_backward(
        x: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if !rows::takes_elements(&[&x, &grad], &bias.iter().collect::<Vec<_>>()) {
            return gelu::reference_backward::<Self>(x, bias, grad);
        }
        let (shape, dtype) = (x.shape.clone(), x.dtype);
        match bias {
            None => whole::<B, 2>("firebrick gelu backward", [x, grad], shape, dtype, move |[x, grad]| {
                <B as KernelBackend>::gelu_backward(x, None, grad)
            }),
            Some(bias) => {
                whole::<B, 3>("firebrick gelu backward", [x, grad, bias], shape, dtype, move |[x, grad, bias]| {
                    <B as KernelBackend>::gelu_backward(x, Some(bias), grad)
                })
            }
        }
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
    let [output] = whole_to::<B, N, 1>(name, inputs, [(shape, dtype)], move |inputs| [run(inputs)]);
    output
}

/// Records `run` as one op with outputs of these shapes and dtypes.
fn whole_to<B: FusionBackend, const N: usize, const M: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    outputs: [(Shape, DType); M],
    run: impl Fn([FloatTensor<B>; N]) -> [FloatTensor<B>; M] + Send + Sync + 'static,
) -> [FusionTensor<B::FusionRuntime>; M] {
    whole_of::<B, M>(name, inputs.into(), outputs, move |inputs| {
        run(inputs.try_into().unwrap_or_else(|_| unreachable!("as many inputs as were recorded")))
    })
}

/// The same with a number of inputs that only the caller knows.
fn whole_of<B: FusionBackend, const M: usize>(
    name: &'static str,
    inputs: Vec<FusionTensor<B::FusionRuntime>>,
    outputs: [(Shape, DType); M],
    run: impl Fn(Vec<FloatTensor<B>>) -> [FloatTensor<B>; M] + Send + Sync + 'static,
) -> [FusionTensor<B::FusionRuntime>; M] {
    let client = inputs[0].client.clone();
    // Before the inputs become descriptions: the streams they were recorded on must be known.
    let streams = OperationStreams::with_inputs(inputs.iter());
    let outputs = outputs.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let ir = CustomOpIr::new(name, &inputs, &outputs);
    let operation = Whole::<B, _, M> { ir: ir.clone(), run, backend: PhantomData };
    client.register(streams, OperationIr::Custom(ir), operation).outputs()
}

struct Whole<B, F, const M: usize> {
    ir: CustomOpIr,
    run: F,
    backend: PhantomData<fn() -> B>,
}

impl<B, F, const M: usize> fmt::Debug for Whole<B, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ir.fmt(f)
    }
}

impl<B, F, const M: usize> Operation<B::FusionRuntime> for Whole<B, F, M>
where
    B: FusionBackend,
    F: Fn(Vec<FloatTensor<B>>) -> [FloatTensor<B>; M] + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>) {
        let inputs = self.ir.inputs.iter().map(|input| handles.get_float_tensor::<B>(input)).collect();
        for (output, result) in self.ir.outputs.iter().zip((self.run)(inputs)) {
            handles.register_float_tensor::<B>(&output.id, result);
        }
    }
}
