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

            fn rope(
                x: burn::tensor::ops::FloatTensor<Self>,
                cos: burn::tensor::ops::FloatTensor<Self>,
                sin: burn::tensor::ops::FloatTensor<Self>,
            ) -> burn::tensor::ops::FloatTensor<Self> {
                use $crate::ops::rope;
                if rope::cube::takes(&[x.dtype, cos.dtype, sin.dtype], x.meta.num_elements()) {
                    return rope::cube::forward(x, cos, sin);
                }
                rope::reference::<Self>(x, cos, sin)
            }
            fn rope_into(
                target: burn::tensor::ops::FloatTensor<Self>,
                x: burn::tensor::ops::FloatTensor<Self>,
                cos: burn::tensor::ops::FloatTensor<Self>,
                sin: burn::tensor::ops::FloatTensor<Self>,
                start: usize,
            ) -> burn::tensor::ops::FloatTensor<Self> {
                use $crate::ops::rope;
                if rope::cube::takes(&[target.dtype, x.dtype, cos.dtype, sin.dtype], x.meta.num_elements()) {
                    return rope::cube::forward_into(target, x, cos, sin, start);
                }
                Self::write_rows(target, Self::rope(x, cos, sin), start)
            }
            fn write_rows(
                target: burn::tensor::ops::FloatTensor<Self>,
                rows: burn::tensor::ops::FloatTensor<Self>,
                start: usize,
            ) -> burn::tensor::ops::FloatTensor<Self> {
                use $crate::ops::write_rows;
                if write_rows::cube::takes(target.dtype, rows.dtype, rows.meta.num_elements()) {
                    return write_rows::cube::forward(target, rows, start);
                }
                write_rows::reference::<Self>(target, rows, start)
            }

            fn linear(
                x: burn::tensor::ops::FloatTensor<Self>,
                weight: burn::tensor::ops::FloatTensor<Self>,
                bias: Option<burn::tensor::ops::FloatTensor<Self>>,
            ) -> burn::tensor::ops::FloatTensor<Self> {
                use $crate::ops::linear;
                let formats = ((x.dtype, x.meta.shape()), (weight.dtype, weight.meta.shape()));
                if linear::cube::takes(formats.0, formats.1, bias.as_ref().map(|bias| bias.dtype)) {
                    return linear::cube::forward(x, weight, bias, None);
                }
                linear::reference::<Self>(x, weight, bias)
            }
            fn lora_linear(
                x: burn::tensor::ops::FloatTensor<Self>,
                weight: burn::tensor::ops::FloatTensor<Self>,
                bias: Option<burn::tensor::ops::FloatTensor<Self>>,
                low: burn::tensor::ops::FloatTensor<Self>,
                b: burn::tensor::ops::FloatTensor<Self>,
                scale: f64,
            ) -> burn::tensor::ops::FloatTensor<Self> {
                use $crate::ops::{linear, lora_linear};
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
                q: burn::tensor::ops::FloatTensor<Self>,
                k: burn::tensor::ops::FloatTensor<Self>,
                v: burn::tensor::ops::FloatTensor<Self>,
                layout: &$crate::ops::attention::AttentionLayout,
            ) -> burn::tensor::ops::FloatTensor<Self> {
                use $crate::ops::attention;
                if attention::cube::takes(q.meta.shape(), [q.dtype, k.dtype, v.dtype], layout) {
                    return attention::cube::forward(q, k, v, layout);
                }
                attention::reference::<Self>(q, k, v, layout)
            }
        }
    };
}
pub(crate) use cube_kernels;
