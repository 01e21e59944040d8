//! burn-candle: the CPU, CUDA and Metal by candle's kernels; one type, and a device for each.

#![allow(deprecated)] // burn-candle 0.21 is deprecated as a crate: its successors have no Metal of their own for training.

use burn_candle::{Candle, CandleDevice};

use crate::KernelBackend;
use crate::device::{DeviceKind, Found};
use crate::process::cpu_name;

/// Candle in full precision; weights keep a dtype of their own.
pub type Backend = Candle<f32, i64>;

impl KernelBackend for Backend {}

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
