//! burn-candle: the CPU, CUDA and Metal by candle's kernels; one type, and a device for each. The norm-like ops have kernels of ours on
//! the CPU, those that Flex runs, and shaders of ours on Metal; what they do not take is the reference.

#![allow(deprecated)] // burn-candle 0.21 is deprecated as a crate: its successors have no Metal of their own for training.

mod kernel;
#[cfg(all(feature = "candle-metal", target_os = "macos"))]
mod shaders;

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensorOps;
use burn_candle::{Candle, CandleDevice, CandleTensor};

use self::kernel::{run, times_transposed};
use super::{cpu, shader};
use crate::KernelBackend;
use crate::device::{DeviceKind, Found};
use crate::ops::{
    add_layer_norm, add_rms_norm, gelu, in_dtype_of, layer_norm, linear, norm_rope, rms_norm, rope, softmax, swiglu,
};
use crate::process::cpu_name;

/// Candle in full precision; weights keep a dtype of their own.
pub type Backend = Candle<f32, i64>;

/// Rows and their width.
fn rows(tensor: &CandleTensor) -> (usize, usize) {
    let shape = tensor.shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

impl KernelBackend for Backend {
    fn copied(x: CandleTensor) -> CandleTensor {
        match run("copied", [&x], None, |[x]| [cpu::copied(&x)]) {
            Some([copy]) => copy,
            None => Self::float_mul_scalar(x, 1.0.into()),
        }
    }

    fn linear(x: CandleTensor, weight: CandleTensor, bias: Option<CandleTensor>) -> CandleTensor {
        if [&x, &weight].iter().any(|tensor| tensor.shape().num_elements() == 0) {
            return linear::reference::<Self>(x, weight, bias);
        }
        let weight = in_dtype_of::<Self>(weight, &x);
        linear::with_bias::<Self>(times_transposed(&x, &weight), bias)
    }

    fn rms_norm(x: CandleTensor, weight: CandleTensor, epsilon: f64) -> CandleTensor {
        let (rows, width) = rows(&x);
        let launch = || shader::rms_norm(rows, width, epsilon);
        match run("rms_norm", [&x, &weight], Some(&launch), |[x, weight]| [rms_norm::cpu::forward(x, weight, epsilon)])
        {
            Some([y]) => y,
            None => rms_norm::reference::<Self>(x, weight, epsilon),
        }
    }
    fn rms_norm_backward_input(
        x: CandleTensor,
        weight: CandleTensor,
        grad: CandleTensor,
        epsilon: f64,
    ) -> CandleTensor {
        match run("rms_norm_backward_input", [&x, &weight, &grad], None, |[x, weight, grad]| {
            [rms_norm::cpu::backward_input(x, weight, grad, epsilon)]
        }) {
            Some([dx]) => dx,
            None => rms_norm::reference_backward_input::<Self>(x, weight, grad, epsilon),
        }
    }

    fn layer_norm(x: CandleTensor, weight: CandleTensor, bias: CandleTensor, epsilon: f64) -> CandleTensor {
        let (rows, width) = rows(&x);
        let launch = || shader::layer_norm(rows, width, epsilon);
        match run("layer_norm", [&x, &weight, &bias], Some(&launch), |[x, weight, bias]| {
            [layer_norm::cpu::forward(x, weight, bias, epsilon)]
        }) {
            Some([y]) => y,
            None => layer_norm::reference::<Self>(x, weight, bias, epsilon),
        }
    }
    fn layer_norm_backward_input(
        x: CandleTensor,
        weight: CandleTensor,
        grad: CandleTensor,
        epsilon: f64,
    ) -> CandleTensor {
        match run("layer_norm_backward_input", [&x, &weight, &grad], None, |[x, weight, grad]| {
            [layer_norm::cpu::backward_input(x, weight, grad, epsilon)]
        }) {
            Some([dx]) => dx,
            None => layer_norm::reference_backward_input::<Self>(x, weight, grad, epsilon),
        }
    }

    fn add_rms_norm(
        x: CandleTensor,
        residual: CandleTensor,
        weight: CandleTensor,
        epsilon: f64,
    ) -> (CandleTensor, CandleTensor) {
        let (rows, width) = rows(&x);
        let launch = || shader::add_rms_norm(rows, width, epsilon);
        match run("add_rms_norm", [&x, &residual, &weight], Some(&launch), |[x, residual, weight]| {
            add_rms_norm::cpu::forward(x, residual, weight, epsilon).into()
        }) {
            Some([sum, normed]) => (sum, normed),
            None => add_rms_norm::reference::<Self>(x, residual, weight, epsilon),
        }
    }

    fn add_layer_norm(
        x: CandleTensor,
        residual: CandleTensor,
        weight: CandleTensor,
        bias: CandleTensor,
        epsilon: f64,
    ) -> CandleTensor {
        let (rows, width) = rows(&x);
        let launch = || shader::add_layer_norm(rows, width, epsilon);
        match run("add_layer_norm", [&x, &residual, &weight, &bias], Some(&launch), |[x, residual, weight, bias]| {
            [add_layer_norm::cpu::forward(x, residual, weight, bias, epsilon)]
        }) {
            Some([y]) => y,
            None => add_layer_norm::reference::<Self>(x, residual, weight, bias, epsilon),
        }
    }

    fn softmax(x: CandleTensor, scale: f64, mask: Option<CandleTensor>) -> CandleTensor {
        let (count, width) = rows(&x);
        let mask_rows = mask.as_ref().map(|mask| rows(mask).0);
        let launch = || shader::softmax(count, width, scale, mask_rows);
        let done = match &mask {
            None => run("softmax", [&x], Some(&launch), |[x]| [softmax::cpu::forward(x, scale, None)]),
            Some(mask) => {
                run("softmax", [&x, mask], Some(&launch), |[x, mask]| [softmax::cpu::forward(x, scale, Some(mask))])
            }
        };
        match done {
            Some([y]) => y,
            None => softmax::reference::<Self>(x, scale, mask),
        }
    }
    fn softmax_backward(y: CandleTensor, grad: CandleTensor, scale: f64) -> CandleTensor {
        match run("softmax_backward", [&y, &grad], None, |[y, grad]| [softmax::cpu::backward(y, grad, scale)]) {
            Some([dx]) => dx,
            None => softmax::reference_backward::<Self>(y, grad, scale),
        }
    }

    fn rope(x: CandleTensor, cos: CandleTensor, sin: CandleTensor) -> CandleTensor {
        let shape = x.shape();
        let launch = || shader::rope(shape[0], shape[1], shape[2]);
        match run("rope", [&x, &cos, &sin], Some(&launch), |[x, cos, sin]| [rope::cpu::forward(x, cos, sin)]) {
            Some([y]) => y,
            None => rope::reference::<Self>(x, cos, sin),
        }
    }
    fn norm_rope(
        x: CandleTensor,
        weight: CandleTensor,
        epsilon: f64,
        cos: CandleTensor,
        sin: CandleTensor,
    ) -> CandleTensor {
        let shape = x.shape();
        let launch = || shader::norm_rope(shape[0], shape[1], shape[2], epsilon);
        match run("norm_rope", [&x, &weight, &cos, &sin], Some(&launch), |[x, weight, cos, sin]| {
            [norm_rope::cpu::forward(x, weight, epsilon, cos, sin)]
        }) {
            Some([y]) => y,
            None => norm_rope::reference::<Self>(x, weight, epsilon, cos, sin),
        }
    }

    fn swiglu(gate: CandleTensor, up: CandleTensor) -> CandleTensor {
        let elements = gate.shape().num_elements();
        let launch = || shader::swiglu(elements);
        match run("swiglu", [&gate, &up], Some(&launch), |[gate, up]| [swiglu::cpu::forward(gate, up)]) {
            Some([y]) => y,
            None => swiglu::reference::<Self>(gate, up),
        }
    }
    fn swiglu_backward(gate: CandleTensor, up: CandleTensor, grad: CandleTensor) -> (CandleTensor, CandleTensor) {
        match run("swiglu_backward", [&gate, &up, &grad], None, |[gate, up, grad]| {
            let (d_gate, d_up) = swiglu::cpu::backward(gate, up, grad);
            [d_gate, d_up]
        }) {
            Some([d_gate, d_up]) => (d_gate, d_up),
            None => swiglu::reference_backward::<Self>(gate, up, grad),
        }
    }

    fn gelu(x: CandleTensor, bias: Option<CandleTensor>) -> CandleTensor {
        let elements = x.shape().num_elements();
        let launch = || shader::gelu(elements, bias.as_ref().map(|bias| bias.shape().num_elements()));
        let done = match &bias {
            None => run("gelu", [&x], Some(&launch), |[x]| [gelu::cpu::forward(x, None)]),
            Some(bias) => run("gelu", [&x, bias], Some(&launch), |[x, bias]| [gelu::cpu::forward(x, Some(bias))]),
        };
        match done {
            Some([y]) => y,
            None => gelu::reference::<Self>(x, bias),
        }
    }
    fn gelu_backward(x: CandleTensor, bias: Option<CandleTensor>, grad: CandleTensor) -> CandleTensor {
        let done = match &bias {
            None => run("gelu_backward", [&x, &grad], None, |[x, grad]| [gelu::cpu::backward(x, None, grad)]),
            Some(bias) => run("gelu_backward", [&x, bias, &grad], None, |[x, bias, grad]| {
                [gelu::cpu::backward(x, Some(bias), grad)]
            }),
        };
        match done {
            Some([dx]) => dx,
            None => gelu::reference_backward::<Self>(x, bias, grad),
        }
    }
}

/// The one processor.
pub(crate) fn devices() -> Vec<Found<CandleDevice>> {
    vec![Found {
        device: CandleDevice::Cpu,
        name: cpu_name(),
        driver: "candle-core 0.10.2".to_owned(),
        kind: DeviceKind::Cpu,
    }]
}

/// NVIDIA through candle.
#[cfg(feature = "candle-cuda")]
pub(crate) mod cuda {
    pub use super::Backend;
    use super::{CandleDevice, DeviceKind, Found};

    /// The devices candle can open, in CUDA's order.
    pub(crate) fn devices() -> Vec<Found<CandleDevice>> {
        let open = |index| candle_core::Device::new_cuda(index).ok();
        let found = |(index, device): (usize, candle_core::Device)| Found {
            device: CandleDevice::from(device),
            name: format!("CUDA device {index}"),
            driver: "candle-core 0.10.2".to_owned(),
            kind: DeviceKind::DiscreteGpu,
        };
        (0..).map_while(open).enumerate().map(found).collect()
    }
}

/// Apple through candle.
#[cfg(all(feature = "candle-metal", target_os = "macos"))]
pub(crate) mod metal {
    pub use super::Backend;
    use super::{CandleDevice, DeviceKind, Found, cpu_name};

    /// The graphics unit of this Mac.
    pub(crate) fn devices() -> Vec<Found<CandleDevice>> {
        let found = |device: candle_core::Device| Found {
            device: CandleDevice::from(device),
            name: cpu_name(),
            driver: "candle-core 0.10.2".to_owned(),
            kind: DeviceKind::IntegratedGpu,
        };
        candle_core::Device::new_metal(0).ok().map(found).into_iter().collect()
    }
}
