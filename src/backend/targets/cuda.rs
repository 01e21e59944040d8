//! burn-cuda: NVIDIA. The driver is loaded when the first device is asked for, so that a binary with CUDA runs without it.

use std::sync::OnceLock;

use burn_cubecl::CubeBackend;
use burn_cuda::CudaDevice;
use cubecl::cuda::CudaRuntime;
use cudarc::driver::{CudaContext, sys};

use crate::device::{DeviceKind, Found};
use crate::targets::cube::cube_kernels;

/// CUDA with fused element-wise ops.
pub type Backend = burn_cuda::Cuda<f32, i32>;

cube_kernels!(CubeBackend<CudaRuntime, f32, i32, u8>);

/// The devices CUDA numbers; none without a driver, which is asked once.
pub(crate) fn devices() -> Vec<Found<CudaDevice>> {
    static FOUND: OnceLock<Vec<Found<CudaDevice>>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn find() -> Vec<Found<CudaDevice>> {
    // SAFETY: it looks for the driver's library and opens it, which runs that library's own initialisers and nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Vec::new();
    }
    let count = CudaContext::device_count().unwrap_or(0);
    let found = |index: i32| {
        let context = CudaContext::new(index as usize).ok()?;
        let (major, minor) = context.compute_capability().ok()?;
        Some(Found {
            device: CudaDevice::new(index as usize),
            name: context.name().ok()?,
            driver: format!("CUDA {}, compute capability {major}.{minor}", driver_version()?),
            kind: DeviceKind::DiscreteGpu,
        })
    };
    (0..count).filter_map(found).collect()
}

/// The newest CUDA that the driver runs, such as `12.8`.
fn driver_version() -> Option<String> {
    let mut version = 0;
    // SAFETY: the library is present, since devices were counted, and the call writes one integer.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    (status == sys::CUresult::CUDA_SUCCESS).then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
}
