//! What wgpu and CUDA share: the kernels written in CubeCL. Each runtime has its own impl, so that one can differ from the others.

/// The lines of one runtime.
macro_rules! cube_kernels {
    ($backend:ty) => {
        impl $crate::KernelBackend for $backend {
            fn reads_weights(device: &Self::Device, dtype: burn::tensor::DType) -> bool {
                use burn::tensor::DType;
                use burn::tensor::backend::Backend;
                match dtype {
                    DType::F32 => true,
                    DType::F16 | DType::BF16 => Self::supports_dtype(device, dtype),
                    _ => false,
                }
            }

            fn linear(
                x: burn::tensor::ops::FloatTensor<Self>,
                weight: burn::tensor::ops::FloatTensor<Self>,
                bias: Option<burn::tensor::ops::FloatTensor<Self>>,
            ) -> burn::tensor::ops::FloatTensor<Self> {
                use $crate::ops::linear;
                if linear::cube::takes((x.dtype, x.meta.shape()), weight.dtype) {
                    return linear::with_bias::<Self>(linear::cube::forward(x, weight), bias);
                }
                linear::reference::<Self>(x, weight, bias)
            }
        }
    };
}
pub(crate) use cube_kernels;
