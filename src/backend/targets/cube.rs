//! What wgpu and CUDA share: the kernels written in CubeCL. Each runtime has its own impl, so that one can differ from the others.

pub(crate) mod rows;

/// The lines of one runtime.
macro_rules! cube_kernels {
    ($backend:ty) => {
        const _: () = {
            use burn::tensor::DType;
            use burn::tensor::backend::Backend;
            use burn::tensor::ops::FloatTensor;
            use $crate::ops::{add_layer_norm, add_rms_norm, gelu, layer_norm, linear, rms_norm, softmax, swiglu};
            use $crate::targets::cube::rows;

            impl $crate::KernelBackend for $backend {
                fn reads_weights(device: &Self::Device, dtype: DType) -> bool {
                    match dtype {
                        DType::F32 => true,
                        DType::F16 | DType::BF16 => Self::supports_dtype(device, dtype),
                        _ => false,
                    }
                }

                fn linear(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    bias: Option<FloatTensor<Self>>,
                ) -> FloatTensor<Self> {
                    if linear::cube::takes((x.dtype, x.meta.shape()), weight.dtype) {
                        return linear::with_bias::<Self>(linear::cube::forward(x, weight), bias);
                    }
                    linear::reference::<Self>(x, weight, bias)
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
