//! What wgpu and CUDA share: the kernels written in CubeCL. Each runtime has its own impl, so that one can differ from the others.

pub(crate) mod packed;
pub(crate) mod rows;

/// The lines of one runtime.
macro_rules! cube_kernels {
    ($backend:ty) => {
        const _: () = {
            use burn::tensor::DType;
            use burn::tensor::backend::Backend;
            use burn::tensor::ops::{FloatTensor, IntTensor};
            use $crate::ops::{add_layer_norm, add_rms_norm, attention, embedding, gelu, layer_norm, linear, linears};
            use $crate::ops::{lora_linear, norm_rope, rms_norm, rope, softmax, swiglu, write_rows};
            use $crate::packed::{Format, Packed};
            use $crate::targets::cube::{packed, rows};

            impl $crate::KernelBackend for $backend {
                fn reads_weights(device: &Self::Device, dtype: DType) -> bool {
                    match dtype {
                        DType::F32 => true,
                        DType::F16 | DType::BF16 => Self::supports_dtype(device, dtype),
                        _ => Format::of(dtype).is_some(),
                    }
                }
                fn packed(matrix: Packed, device: &Self::Device) -> FloatTensor<Self> {
                    packed::tensor(&matrix, device)
                }
                fn unpacked(weight: FloatTensor<Self>) -> FloatTensor<Self> {
                    if Format::of(weight.dtype).is_some() { embedding::cube::forward(weight, None) } else { weight }
                }
                fn embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
                    if embedding::cube::takes(weight.dtype, ids.dtype) {
                        return embedding::cube::forward(weight, Some(ids));
                    }
                    embedding::reference::<Self>(Self::unpacked(weight), ids)
                }

                fn rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
                    if rope::cube::takes(&[&x, &cos, &sin]) {
                        return rope::cube::forward(x, cos, sin);
                    }
                    rope::reference::<Self>(x, cos, sin)
                }
                fn rope_into(
                    target: FloatTensor<Self>,
                    x: FloatTensor<Self>,
                    cos: FloatTensor<Self>,
                    sin: FloatTensor<Self>,
                    start: usize,
                ) -> FloatTensor<Self> {
                    if rope::cube::takes(&[&x, &target, &cos, &sin]) {
                        return rope::cube::forward_into(target, x, cos, sin, start);
                    }
                    Self::write_rows(target, Self::rope(x, cos, sin), start)
                }
                fn norm_rope(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    epsilon: f64,
                    cos: FloatTensor<Self>,
                    sin: FloatTensor<Self>,
                ) -> FloatTensor<Self> {
                    if norm_rope::cube::takes(&[&x, &cos, &sin], &weight) {
                        return norm_rope::cube::forward(x, weight, epsilon, cos, sin);
                    }
                    norm_rope::reference::<Self>(x, weight, epsilon, cos, sin)
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
                    if norm_rope::cube::takes(&[&x, &target, &cos, &sin], &weight) {
                        return norm_rope::cube::forward_into(target, x, weight, epsilon, [cos, sin], start);
                    }
                    Self::write_rows(target, Self::norm_rope(x, weight, epsilon, cos, sin), start)
                }
                fn write_rows(target: FloatTensor<Self>, rows: FloatTensor<Self>, start: usize) -> FloatTensor<Self> {
                    if write_rows::cube::takes(target.dtype, rows.dtype, rows.meta.num_elements()) {
                        return write_rows::cube::forward(target, rows, start);
                    }
                    write_rows::reference::<Self>(target, rows, start)
                }

                fn linear(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    bias: Option<FloatTensor<Self>>,
                ) -> FloatTensor<Self> {
                    let formats = ((x.dtype, x.meta.shape()), (weight.dtype, weight.meta.shape()));
                    if linear::cube::takes(formats.0, formats.1, bias.as_ref().map(|bias| bias.dtype)) {
                        return linear::cube::forward(x, weight, bias, None);
                    }
                    linear::reference::<Self>(x, Self::unpacked(weight), bias)
                }
                fn linear_backward_input(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
                    linear::reference_backward_input::<Self>(grad, Self::unpacked(weight))
                }
                fn linears<const N: usize>(
                    x: FloatTensor<Self>,
                    maps: [linears::Map<Self>; N],
                ) -> [FloatTensor<Self>; N] {
                    let formats = maps.each_ref().map(|(weight, bias)| {
                        (weight.dtype, weight.meta.shape(), bias.as_ref().map(|bias| bias.dtype))
                    });
                    if linears::cube::takes((x.dtype, x.meta.shape()), &formats) && linears::cube::fits(&x, &maps) {
                        return linears::cube::forward(x, maps);
                    }
                    linears::reference::<Self, N>(x, maps)
                }
                fn lora_linear(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    bias: Option<FloatTensor<Self>>,
                    low: FloatTensor<Self>,
                    b: FloatTensor<Self>,
                    scale: f64,
                ) -> FloatTensor<Self> {
                    let formats = ((x.dtype, x.meta.shape()), (weight.dtype, weight.meta.shape()));
                    if linear::cube::takes(formats.0, formats.1, bias.as_ref().map(|bias| bias.dtype))
                        && linear::cube::adds((low.dtype, low.meta.shape()), b.dtype)
                    {
                        let update = linear::cube::Update { low, b, scale: scale as f32 };
                        return linear::cube::forward(x, weight, bias, Some(update));
                    }
                    lora_linear::reference::<Self>(x, weight, bias, low, b, scale)
                }

                fn attention(
                    q: FloatTensor<Self>,
                    k: FloatTensor<Self>,
                    v: FloatTensor<Self>,
                    layout: &$crate::ops::attention::AttentionLayout,
                ) -> FloatTensor<Self> {
                    if attention::cube::takes(q.meta.shape(), [q.dtype, k.dtype, v.dtype], layout) {
                        return attention::cube::forward(q, k, v, layout);
                    }
                    attention::reference::<Self>(q, k, v, layout)
                }

                fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
                    if rows::takes(&[&x], &[&weight]) {
                        return rms_norm::cube::forward(x, weight, epsilon);
                    }
                    rms_norm::reference::<Self>(x, weight, epsilon)
                }

                fn rms_norm_backward_input(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    grad: FloatTensor<Self>,
                    epsilon: f64,
                ) -> FloatTensor<Self> {
                    if rows::takes(&[&x, &grad], &[&weight]) {
                        return rms_norm::cube::backward_input(x, weight, grad, epsilon);
                    }
                    rms_norm::reference_backward_input::<Self>(x, weight, grad, epsilon)
                }

                fn layer_norm(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    bias: FloatTensor<Self>,
                    epsilon: f64,
                ) -> FloatTensor<Self> {
                    if rows::takes(&[&x], &[&weight, &bias]) {
                        return layer_norm::cube::forward(x, weight, bias, epsilon);
                    }
                    layer_norm::reference::<Self>(x, weight, bias, epsilon)
                }

                fn layer_norm_backward_input(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    grad: FloatTensor<Self>,
                    epsilon: f64,
                ) -> FloatTensor<Self> {
                    if rows::takes(&[&x, &grad], &[&weight]) {
                        return layer_norm::cube::backward_input(x, weight, grad, epsilon);
                    }
                    layer_norm::reference_backward_input::<Self>(x, weight, grad, epsilon)
                }

                fn add_rms_norm(
                    x: FloatTensor<Self>,
                    residual: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    epsilon: f64,
                ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                    if rows::takes(&[&x, &residual], &[&weight]) {
                        return add_rms_norm::cube::forward(x, residual, weight, epsilon);
                    }
                    add_rms_norm::reference::<Self>(x, residual, weight, epsilon)
                }

                fn add_layer_norm(
                    x: FloatTensor<Self>,
                    residual: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    bias: FloatTensor<Self>,
                    epsilon: f64,
                ) -> FloatTensor<Self> {
                    if rows::takes(&[&x, &residual], &[&weight, &bias]) {
                        return add_layer_norm::cube::forward(x, residual, weight, bias, epsilon);
                    }
                    add_layer_norm::reference::<Self>(x, residual, weight, bias, epsilon)
                }

                fn softmax(x: FloatTensor<Self>, scale: f64, mask: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
                    if rows::takes(&[&x], &mask.iter().collect::<Vec<_>>()) {
                        return softmax::cube::forward(x, scale, mask);
                    }
                    softmax::reference::<Self>(x, scale, mask)
                }

                fn softmax_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
                    if rows::takes(&[&y, &grad], &[]) {
                        return softmax::cube::backward(y, grad, scale);
                    }
                    softmax::reference_backward::<Self>(y, grad, scale)
                }

                fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
                    if rows::takes_elements(&[&gate, &up], &[]) {
                        return swiglu::cube::forward(gate, up);
                    }
                    swiglu::reference::<Self>(gate, up)
                }

                fn swiglu_backward(
                    gate: FloatTensor<Self>,
                    up: FloatTensor<Self>,
                    grad: FloatTensor<Self>,
                ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                    if rows::takes_elements(&[&gate, &up, &grad], &[]) {
                        return swiglu::cube::backward(gate, up, grad);
                    }
                    swiglu::reference_backward::<Self>(gate, up, grad)
                }

                fn gelu(x: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
                    if rows::takes_elements(&[&x], &bias.iter().collect::<Vec<_>>()) {
                        return gelu::cube::forward(x, bias);
                    }
                    gelu::reference::<Self>(x, bias)
                }

                fn gelu_backward(
                    x: FloatTensor<Self>,
                    bias: Option<FloatTensor<Self>>,
                    grad: FloatTensor<Self>,
                ) -> FloatTensor<Self> {
                    if rows::takes_elements(&[&x, &grad], &bias.iter().collect::<Vec<_>>()) {
                        return gelu::cube::backward(x, bias, grad);
                    }
                    gelu::reference_backward::<Self>(x, bias, grad)
                }
            }
        };
    };
}
pub(crate) use cube_kernels;
