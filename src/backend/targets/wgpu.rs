//! burn-wgpu: Vulkan, Metal and WebGPU as one type; which shader language it speaks was decided when it was built.

use std::sync::OnceLock;

use burn_cubecl::CubeBackend;
use burn_wgpu::{WgpuDevice, WgpuRuntime};
use cubecl::future::block_on;
use wgpu::{DeviceType, Instance, InstanceDescriptor};

use crate::device::{DeviceKind, Found};
use crate::targets::cube::cube_kernels;

/// The one type of all wgpu rows: Burn's own aliases differ in how they store booleans, and each type is compiled anew.
pub type Backend = burn_wgpu::Wgpu<f32, i32, u32>;

/// The same without fusion.
pub type Unfused = CubeBackend<WgpuRuntime, f32, i32, u32>;

cube_kernels!(Unfused);

/// The shader language this build speaks on that interface.
const LANGUAGE: &str = if cfg!(all(target_os = "macos", feature = "metal")) {
    "MSL"
} else if cfg!(all(not(target_os = "macos"), feature = "vulkan")) {
    "SPIR-V"
} else {
    "WGSL"
};

/// The interface that wgpu reaches adapters by on this system, the same that burn-wgpu takes by itself.
const INTERFACE: wgpu::Backends =
    if cfg!(target_os = "macos") { wgpu::Backends::METAL } else { wgpu::Backends::VULKAN };

/// The adapters, graphics cards with memory of their own first, software last. The drivers are asked once.
pub(crate) fn devices() -> Vec<Found<WgpuDevice>> {
    static FOUND: OnceLock<Vec<Found<WgpuDevice>>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn find() -> Vec<Found<WgpuDevice>> {
    let instance =
        Instance::new(InstanceDescriptor { backends: INTERFACE, ..InstanceDescriptor::new_without_display_handle() });
    // Burn numbers the adapters of each type by themselves, in the order that wgpu lists them.
    let (mut discrete, mut integrated, mut virtual_gpus) = (0.., 0.., 0..);
    let next = |numbers: &mut std::ops::RangeFrom<usize>| numbers.next().unwrap_or_default();
    let mut found = Vec::new();
    for adapter in block_on(instance.enumerate_adapters(INTERFACE)) {
        let info = adapter.get_info();
        let (device, kind) = match info.device_type {
            DeviceType::DiscreteGpu => (WgpuDevice::DiscreteGpu(next(&mut discrete)), DeviceKind::DiscreteGpu),
            DeviceType::IntegratedGpu => (WgpuDevice::IntegratedGpu(next(&mut integrated)), DeviceKind::IntegratedGpu),
            DeviceType::VirtualGpu => (WgpuDevice::VirtualGpu(next(&mut virtual_gpus)), DeviceKind::VirtualGpu),
            DeviceType::Cpu => (WgpuDevice::Cpu, DeviceKind::Software),
            DeviceType::Other => continue,
        };
        let driver = format!("{} {}, {}", info.driver, info.driver_info, LANGUAGE);
        found.push(Found { device, name: info.name, driver: driver.trim().to_owned(), kind });
    }
    found.sort_by_key(|it| match it.kind {
        DeviceKind::DiscreteGpu => 0,
        DeviceKind::IntegratedGpu => 1,
        DeviceKind::VirtualGpu => 2,
        DeviceKind::Cpu | DeviceKind::Software => 3,
    });
    found
}
