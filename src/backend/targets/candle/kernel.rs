//! An op of ours on candle's tensors: the row kernel on the CPU, on a Mac the hand-written shader as a custom op.

use std::borrow::Cow;
use std::sync::RwLockReadGuard;

use burn::tensor::Shape;
use burn_candle::CandleTensor;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, WithDType};
use half::{bf16, f16};

use crate::targets::cpu::RowTensor;
use crate::targets::shader::Launch;

// `CandleTensor` has one field, candle's tensor, and shows it to nobody. A struct of one field that is as large and as aligned as the field
// has it at its start.
const _: () =
    assert!(size_of::<CandleTensor>() == size_of::<Tensor>() && align_of::<CandleTensor>() == align_of::<Tensor>());

/// Candle's own tensor.
fn inner(tensor: &CandleTensor) -> &Tensor {
    // SAFETY: the assertion above: the one field lies at the start of the struct and fills it. The reference keeps its lifetime.
    unsafe { &*std::ptr::from_ref(tensor).cast::<Tensor>() }
}

/// A contiguous tensor of candle on the CPU, as the row kernels read it: widened to f32 where it was narrower.
#[derive(Clone, Copy)]
pub(super) struct Slice<'s> {
    values: &'s [f32],
    shape: &'s candle_core::Shape,
}

impl RowTensor for Slice<'_> {
    type Output = Vec<f32>;
    const REUSES_MEMORY: bool = false;

    fn shape(&self) -> Shape {
        Shape::from(self.shape.dims().to_vec())
    }
    fn contiguous(&self) -> Self {
        *self
    }
    fn buffer(&self) -> &[f32] {
        self.values
    }
    fn offset(&self) -> usize {
        0
    }
    fn output(data: Vec<f32>, _: Shape) -> Vec<f32> {
        data
    }
}

/// `x · Wᵀ` in one dtype, `[rows, in]` and `[out, in]` → `[rows, out]`. Candle's product reads the transposed weight by its strides, which
/// burn-candle's does not: it copies the whole weight first.
///
/// # Panics
/// If candle refuses the product.
pub(super) fn times_transposed(x: &CandleTensor, weight: &CandleTensor) -> CandleTensor {
    let product = || inner(x).contiguous()?.matmul(&inner(weight).t()?);
    CandleTensor::new(product().unwrap_or_else(|error: candle_core::Error| panic!("linear: {error}")))
}

/// Runs `compute` on the CPU or what `launch` says on Metal, and gives back tensors of the first input's shape and dtype. `None` where
/// there is no kernel for the device or the dtypes, and for a tensor without elements.
///
/// # Panics
/// If candle fails.
pub(super) fn run<const N: usize, const M: usize>(
    name: &'static str,
    inputs: [&CandleTensor; N],
    launch: Option<&dyn Fn() -> Launch>,
    compute: impl Fn([Slice<'_>; N]) -> [Vec<f32>; M],
) -> Option<[CandleTensor; M]> {
    let tensors = inputs.map(inner);
    let dtype = tensors[0].dtype();
    let runs = match tensors[0].device() {
        Device::Cpu => tensors.iter().all(|tensor| matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16)),
        Device::Metal(_) => {
            cfg!(all(feature = "candle-metal", target_os = "macos"))
                && launch.is_some()
                && matches!(dtype, DType::F32 | DType::F16)
                && tensors.iter().all(|tensor| tensor.dtype() == dtype)
        }
        Device::Cuda(_) => false,
    };
    if !runs || tensors.iter().any(|tensor| tensor.elem_count() == 0) {
        return None;
    }
    let outputs = || {
        // Whole rows of a larger tensor are contiguous and are not copied.
        let inputs = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
        match tensors[0].device() {
            Device::Cpu => on_cpu(&inputs, compute),
            _ => on_metal(name, &inputs, launch),
        }
    };
    Some(outputs().unwrap_or_else(|error| panic!("{name}: {error}")).map(CandleTensor::new))
}

/// Each output in memory of its own, which becomes the tensor's.
fn on_cpu<const N: usize, const M: usize>(
    inputs: &[Tensor],
    compute: impl Fn([Slice<'_>; N]) -> [Vec<f32>; M],
) -> Result<[Tensor; M]> {
    let held: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
    let values = held.iter().map(|(storage, layout)| widened(storage, layout)).collect::<Result<Vec<_>>>()?;
    let slices = std::array::from_fn(|index| Slice { values: &values[index], shape: held[index].1.shape() });
    let (shape, dtype) = (inputs[0].shape(), inputs[0].dtype());
    let output = |values: Vec<f32>| match dtype {
        DType::F16 => narrowed(values, f16::from_f32, shape),
        DType::BF16 => narrowed(values, bf16::from_f32, shape),
        _ => Tensor::from_vec(values, shape, &Device::Cpu),
    };
    all(compute(slices).into_iter().map(output))
}

fn narrowed<T: WithDType>(values: Vec<f32>, narrow: fn(f32) -> T, shape: &candle_core::Shape) -> Result<Tensor> {
    Tensor::from_vec(values.into_iter().map(narrow).collect::<Vec<T>>(), shape, &Device::Cpu)
}

fn all<const M: usize>(outputs: impl Iterator<Item = Result<Tensor>>) -> Result<[Tensor; M]> {
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    outputs.try_into().map_err(|_| candle_core::Error::Msg("as many outputs as were asked for".to_owned()))
}

#[cfg(not(all(feature = "candle-metal", target_os = "macos")))]
fn on_metal<const M: usize>(name: &'static str, _: &[Tensor], _: Option<&dyn Fn() -> Launch>) -> Result<[Tensor; M]> {
    candle_core::bail!("{name} has no shader in this build")
}

#[cfg(all(feature = "candle-metal", target_os = "macos"))]
fn on_metal<const M: usize>(
    name: &'static str,
    inputs: &[Tensor],
    launch: Option<&dyn Fn() -> Launch>,
) -> Result<[Tensor; M]> {
    let stacked = inputs[0].apply_op1_no_bwd(&Shader::<M> { name, inputs, launch })?;
    all((0..M).map(|number| if M == 1 { Ok(stacked.clone()) } else { stacked.get(number) }))
}

/// All inputs travel in the op itself, of which candle sees the first: it has custom ops of at most three, and ours take four. Several outputs
/// are stacked along an axis in front, since a custom op gives one tensor.
#[cfg(all(feature = "candle-metal", target_os = "macos"))]
struct Shader<'k, const M: usize> {
    name: &'static str,
    inputs: &'k [Tensor],
    launch: Option<&'k dyn Fn() -> Launch>,
}

#[cfg(all(feature = "candle-metal", target_os = "macos"))]
impl<const M: usize> candle_core::CustomOp1 for Shader<'_, M> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        candle_core::bail!("{}: on the CPU it is no custom op", self.name)
    }

    fn metal_fwd(
        &self,
        _: &candle_core::MetalStorage,
        layout: &Layout,
    ) -> Result<(candle_core::MetalStorage, candle_core::Shape)> {
        let Some(launch) = self.launch.map(|launch| launch()) else {
            candle_core::bail!("{} has no shader", self.name)
        };
        assert_eq!(launch.outputs, M, "{}: outputs", self.name);
        let shape = layout.shape();
        let stacked = if M == 1 { shape.clone() } else { candle_core::Shape::from([&[M], shape.dims()].concat()) };
        Ok((super::shaders::forward(self.name, self.inputs, &launch, shape.elem_count())?, stacked))
    }
}

/// The elements of a contiguous tensor on the CPU, in f32.
fn widened<'s>(storage: &'s RwLockReadGuard<'_, Storage>, layout: &Layout) -> Result<Cow<'s, [f32]>> {
    let Storage::Cpu(storage) = &**storage else { candle_core::bail!("the inputs are on different devices") };
    let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("an input is strided") };
    Ok(match storage {
        CpuStorage::F32(values) => Cow::Borrowed(&values[start..end]),
        CpuStorage::F16(values) => Cow::Owned(values[start..end].iter().map(|v| v.to_f32()).collect()),
        CpuStorage::BF16(values) => Cow::Owned(values[start..end].iter().map(|v| v.to_f32()).collect()),
        _ => candle_core::bail!("an input is neither f32, f16 nor bf16"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_tensors_keep_their_dtype_and_views_their_place() {
        let whole = Tensor::arange(0.0f32, 12.0, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let rows = whole.to_dtype(dtype).unwrap().narrow(0, 1, 2).unwrap();
            let columns = whole.to_dtype(dtype).unwrap().narrow(1, 1, 2).unwrap();
            for (view, expected) in [
                (rows, vec![8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0]),
                (columns, vec![2.0, 4.0, 10.0, 12.0, 18.0, 20.0]),
            ] {
                let view = CandleTensor::new(view);
                let doubled = run("double", [&view], None, |[x]| [x.buffer().iter().map(|x| 2.0 * x).collect()]);
                let [doubled] = doubled.unwrap();
                assert_eq!((inner(&doubled).dtype(), inner(&doubled).shape()), (dtype, inner(&view).shape()));
                let values =
                    inner(&doubled).flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values, expected);
            }
        }
    }

    #[test]
    fn several_outputs_come_apart() {
        let values = |tensor: &CandleTensor| inner(tensor).to_vec2::<f32>().unwrap();
        let x = CandleTensor::new(Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap());
        let negated = |x: Slice<'_>| x.buffer().iter().map(|x| -x).collect();
        let [same, negative] = run("both", [&x], None, |[x]| [x.buffer().to_vec(), negated(x)]).unwrap();
        assert_eq!(values(&same), [[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(values(&negative), [[-1.0, -2.0], [-3.0, -4.0]]);
    }

    #[test]
    fn nothing_and_what_is_not_ours_is_left_to_the_reference() {
        let compute = |[x]: [Slice<'_>; 1]| [x.buffer().to_vec()];
        for (shape, dtype) in [((0, 4), DType::F32), ((4, 0), DType::F32), ((2, 2), DType::F64)] {
            let tensor = CandleTensor::new(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
            assert!(run("copy", [&tensor], None, compute).is_none());
        }
    }
}
