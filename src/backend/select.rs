//! Which backend runs: one row for each, chosen at run time by name. Features add rows; they never choose.

use crate::TrainBackend;
use crate::device::{DeviceInfo, DeviceKind};
use crate::targets;

/// Work that runs on whichever backend the user named. Inference and validation use `B::InnerBackend`.
pub trait Job {
    /// What the work gives back.
    type Output;
    /// Does the work on `device`.
    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output;
}

/// A backend that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// The name is not one of ours.
    #[error("unknown backend `{name}`; the names are auto {}", ALL.map(|row| row.name).join(" "))]
    Unknown {
        /// The name given.
        name: String,
    },
    /// The name is known, but this binary was built without it.
    #[error("backend `{name}` is not built in; build with `--features {name}`{}", only_on(name))]
    NotBuilt {
        /// The backend's name, which is also its feature's.
        name: &'static str,
    },
    /// Nothing was built in at all.
    #[error("no backend is built in; build with `--features flex`")]
    NoneBuilt,
    /// No backend that was built in finds a device that is not a software renderer.
    #[error("none of {} finds a device; build with `--features flex` for the CPU", listed(&built()))]
    NothingFound,
    /// The backend has devices, but none of this number.
    #[error(
        "backend `{backend}` has no device {index}: it finds {count}, counted from 0; `firebrick doctor` lists them"
    )]
    NoSuchDevice {
        /// The backend.
        backend: BackendName,
        /// The number asked for.
        index: usize,
        /// How many devices there are.
        count: usize,
    },
    /// The backend is built in and finds nothing to run on.
    #[error("backend `{backend}` finds no device{}; `firebrick doctor` lists what there is", hint(*.backend))]
    NoDevice {
        /// The backend.
        backend: BackendName,
    },
}

fn listed(backends: &[BackendName]) -> String {
    backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

struct Row {
    backend: BackendName,
    name: &'static str,
    built: bool,
}

/// One row per backend, the fastest first: its name on the command line (which is its feature's), where it is built in, and
/// its file in `targets`, which names the type and finds the devices.
macro_rules! table {
    ($($(#[$doc:meta])* $backend:ident = $name:literal, if [$($built:tt)*], $($target:ident)::+;)*) => {
        /// A backend by the name it has on the command line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum BackendName {
            $($(#[$doc])* $backend,)*
        }

        const ALL: [Row; [$($name),*].len()] =
            [$(Row { backend: BackendName::$backend, name: $name, built: cfg!($($built)*) },)*];

        /// The devices that one backend finds, best first. Asks the drivers, which takes some milliseconds.
        pub fn devices(backend: BackendName) -> Vec<DeviceInfo> {
            let info = |(index, (name, driver, kind))| DeviceInfo { backend, index, name, driver, kind };
            let found: Vec<(String, String, DeviceKind)> = match backend {
                $(#[cfg($($built)*)]
                BackendName::$backend => {
                    targets::$($target)::+::devices().into_iter().map(|it| (it.name, it.driver, it.kind)).collect()
                })*
                #[allow(unreachable_patterns)]
                _ => Vec::new(),
            };
            found.into_iter().enumerate().map(info).collect()
        }

        /// Runs `job` on the device of this number among the backend's [`devices`].
        ///
        /// # Errors
        /// If the backend is not built in or has no such device.
        pub fn dispatch_on<J: Job>(backend: BackendName, index: usize, job: J) -> Result<J::Output, SelectError> {
            match backend {
                $(#[cfg($($built)*)]
                BackendName::$backend => {
                    let mut found = targets::$($target)::+::devices();
                    match found.len() {
                        0 => return Err(SelectError::NoDevice { backend }),
                        count if index >= count => return Err(SelectError::NoSuchDevice { backend, index, count }),
                        _ => {}
                    }
                    let device = found.swap_remove(index).device;
                    Ok(job.run::<burn::backend::Autodiff<targets::$($target)::+::Backend>>(device))
                })*
                #[allow(unreachable_patterns)]
                other => {
                    let _ = (index, job);
                    Err(SelectError::NotBuilt { name: other.row().name })
                }
            }
        }
    };
}

// Vulkan, Metal and WebGPU are one type and one implementation. With SPIR-V or Metal built in, every adapter of that interface
// runs it: WGSL is no longer reached, and a row that claimed to test it would lie. `wgpu` then means the row that runs.
table! {
    /// burn-cuda: NVIDIA through CUDA.
    Cuda = "cuda", if [feature = "cuda"], cuda;
    /// burn-wgpu with Metal shaders: Apple.
    Metal = "metal", if [all(feature = "metal", target_os = "macos")], wgpu;
    /// burn-wgpu with SPIR-V: any Vulkan driver.
    Vulkan = "vulkan", if [all(feature = "vulkan", not(target_os = "macos"))], wgpu;
    /// burn-wgpu with WGSL: any driver that WebGPU has a backend for.
    Wgpu = "wgpu", if [all(
        feature = "wgpu",
        not(all(feature = "vulkan", not(target_os = "macos"))),
        not(all(feature = "metal", target_os = "macos"))
    )], wgpu;
    /// burn-candle on NVIDIA.
    CandleCuda = "candle-cuda", if [feature = "candle-cuda"], candle::cuda;
    /// burn-candle on Apple.
    CandleMetal = "candle-metal", if [all(feature = "candle-metal", target_os = "macos")], candle::metal;
    /// burn-flex: the CPU.
    Flex = "flex", if [feature = "flex"], flex;
    /// burn-candle on the CPU.
    Candle = "candle", if [feature = "candle"], candle;
}

/// The backends this binary was built with, fastest first.
pub fn built() -> Vec<BackendName> {
    ALL.iter().filter(|row| row.built).map(|row| row.backend).collect()
}

/// Every backend there is, fastest first, and whether this binary has it.
pub fn known() -> impl Iterator<Item = (BackendName, bool)> {
    ALL.iter().map(|row| (row.backend, row.built))
}

/// Whether matrix products are tuned on the device, as the feature `autotune` asks.
pub const fn has_autotune() -> bool {
    cfg!(feature = "autotune")
}

impl BackendName {
    /// The backend of this name; `auto` is the fastest one built in that finds a device, a GPU or the CPU, never a software device.
    ///
    /// # Errors
    /// If the name is unknown, or not built in.
    pub fn named(name: &str) -> Result<Self, SelectError> {
        if name == "auto" {
            let present = |backend: &Self| devices(*backend).iter().any(|device| device.kind != DeviceKind::Software);
            let built = built();
            let nothing = if built.is_empty() { SelectError::NoneBuilt } else { SelectError::NothingFound };
            return built.into_iter().find(present).ok_or(nothing);
        }
        let row = ALL.iter().find(|row| row.name == name).ok_or(SelectError::Unknown { name: name.to_owned() })?;
        let stands_in = |other: &&Row| row.backend == Self::Wgpu && other.built && other.backend.is_wgpu();
        match row.built {
            true => Ok(row.backend),
            false => match ALL.iter().find(stands_in) {
                Some(other) => Ok(other.backend),
                None => Err(SelectError::NotBuilt { name: row.name }),
            },
        }
    }

    fn is_wgpu(self) -> bool {
        matches!(self, Self::Metal | Self::Vulkan | Self::Wgpu)
    }

    fn row(self) -> &'static Row {
        // The table makes both the enum and the rows.
        &ALL[ALL.iter().position(|row| row.backend == self).unwrap_or_default()]
    }
}

impl std::fmt::Display for BackendName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row().name)
    }
}

/// Runs `job` on the named backend's best device.
///
/// # Errors
/// If the backend is not built in or finds no device.
pub fn dispatch<J: Job>(backend: BackendName, job: J) -> Result<J::Output, SelectError> {
    dispatch_on(backend, 0, job)
}

/// Where a feature does anything, if not everywhere.
fn only_on(name: &str) -> &'static str {
    match name {
        "metal" | "candle-metal" if !cfg!(target_os = "macos") => " on macOS",
        "vulkan" if cfg!(target_os = "macos") => " on Linux or Windows",
        _ => "",
    }
}

fn hint(backend: BackendName) -> &'static str {
    match backend {
        BackendName::Cuda | BackendName::CandleCuda => " (NVIDIA's driver, libcuda, must be installed)",
        BackendName::Vulkan | BackendName::Wgpu => " (a Vulkan driver must be installed)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = BackendName::named("tpu").unwrap_err().to_string();
        let names = "auto cuda metal vulkan wgpu candle-cuda candle-metal flex candle";
        assert_eq!(error, format!("unknown backend `tpu`; the names are {names}"));
    }

    #[test]
    fn each_built_backend_has_its_name_and_each_other_names_its_feature() {
        for (backend, is_built) in known() {
            match BackendName::named(&backend.to_string()) {
                Ok(named) => assert!(named == backend && is_built || backend == BackendName::Wgpu),
                Err(error) => {
                    assert!(!is_built && error.to_string().contains(&format!("`--features {backend}`")), "{error}")
                }
            }
        }
    }

    #[test]
    fn auto_takes_no_software_device() {
        let auto = BackendName::named("auto").unwrap();
        assert!(devices(auto).iter().any(|device| device.kind != DeviceKind::Software));
        for faster in built().into_iter().take_while(|backend| *backend != auto) {
            assert!(devices(faster).iter().all(|device| device.kind == DeviceKind::Software), "{faster}");
        }
    }

    #[test]
    fn no_device_and_no_backend_are_errors_that_say_so() {
        struct Nothing;
        impl Job for Nothing {
            type Output = ();
            fn run<B: TrainBackend>(self, _: B::Device) {}
        }
        for (backend, is_built) in known() {
            let error = dispatch_on(backend, 99, Nothing).unwrap_err();
            match is_built {
                true if devices(backend).is_empty() => assert_eq!(error, SelectError::NoDevice { backend }),
                true => assert!(matches!(error, SelectError::NoSuchDevice { index: 99, .. }), "{error:?}"),
                false => assert_eq!(error, SelectError::NotBuilt { name: backend.row().name }),
            }
        }
    }
}
