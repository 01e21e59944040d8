//! The devices a backend finds on this machine: what a table prints, what `auto` chooses by, what a verdict is remembered under.

use crate::select::BackendName;

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The processor, by a backend made for it.
    Cpu,
    /// A graphics card with memory of its own.
    DiscreteGpu,
    /// A graphics unit that shares the processor's memory, as on a Mac.
    IntegratedGpu,
    /// A graphics card behind a hypervisor.
    VirtualGpu,
    /// A graphics driver that computes on the processor (lavapipe, SwiftShader, WARP). For tests; `auto` never takes it.
    Software,
}

impl DeviceKind {
    /// A graphics processor, and not a driver that imitates one.
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::DiscreteGpu | Self::IntegratedGpu | Self::VirtualGpu)
    }
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::DiscreteGpu => "discrete GPU",
            Self::IntegratedGpu => "integrated GPU",
            Self::VirtualGpu => "virtual GPU",
            Self::Software => "software",
        })
    }
}

/// A device of a backend that was built in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The backend that drives it.
    pub backend: BackendName,
    /// Its number among this backend's devices, best first; 0 is the one a name alone means.
    pub index: usize,
    /// Its name as the driver tells it, such as `NVIDIA H200`.
    pub name: String,
    /// The driver and its version, or of a CPU the instructions that are used.
    pub driver: String,
    /// What it is made of.
    pub kind: DeviceKind,
}

impl std::fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backend, index, name, .. } = self;
        match index {
            0 => write!(f, "{backend} ({name})"),
            index => write!(f, "{backend}:{index} ({name})"),
        }
    }
}

/// What a target tells of one of its devices, with the value Burn knows it by.
#[derive(Clone)]
pub(crate) struct Found<D> {
    pub(crate) device: D,
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) kind: DeviceKind,
}
