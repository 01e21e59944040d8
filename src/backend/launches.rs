//! Which kernels a process launches on wgpu or CUDA, in order: CubeCL notes each one when it hands it to the device. For tests that hold
//! a model to its number of launches, since one costs microseconds whatever it computes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Distribution, Tensor};

use crate::KernelBackend;
use crate::ops::tensor;

/// How long CubeCL may take to write down what it has launched.
const PATIENCE: Duration = Duration::from_secs(60);

/// The launches of this process, read back from the file they are noted in.
#[derive(Debug)]
pub struct Launches {
    log: PathBuf,
}

impl Launches {
    /// From now on, every launch of this process is noted in `log`, which must not exist yet; `None` where no backend is built in that
    /// launches any.
    ///
    /// # Panics
    /// If a device was already used: CubeCL reads its settings once.
    pub fn noted_in(log: &Path) -> Option<Self> {
        #[cfg(feature = "cube")]
        {
            use cubecl::config::profiling::{ProfilingConfig, ProfilingLogLevel};
            use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

            let mut profiling = ProfilingConfig::default();
            profiling.logger.level = ProfilingLogLevel::Minimal;
            profiling.logger.file = Some(log.to_owned());
            CubeClRuntimeConfig::set(CubeClRuntimeConfig { profiling, ..Default::default() });
        }
        cfg!(feature = "cube").then(|| Self { log: log.to_owned() })
    }

    /// The kernels that `work` launches, in order, by their short names.
    ///
    /// # Panics
    /// If CubeCL notes nothing, as on a backend that is not its own.
    pub fn of<B: KernelBackend>(&self, device: &B::Device, work: impl FnOnce()) -> Vec<String> {
        let start = self.mark::<B>(device);
        work();
        let end = self.mark::<B>(device);
        self.noted().drain(start..end - 1).collect()
    }

    /// Launches a kernel that nothing else does, and waits until it is noted: everything before it is then noted too. How many lines
    /// there are up to and with it.
    fn mark<B: KernelBackend>(&self, device: &B::Device) -> usize {
        let marks = |lines: &[String]| lines.iter().filter(|line| line.contains("Prng")).count();
        let before = marks(&self.noted());
        let mark = B::float_random([1].into(), Distribution::Default, device, DType::F32.into());
        let mark: Tensor<B, 1> = tensor(mark);
        let read = mark.try_into_data();
        assert!(read.is_ok(), "the mark was not read back: {read:?}");
        let since = Instant::now();
        loop {
            let lines = self.noted();
            if marks(&lines) > before {
                return lines.len();
            }
            assert!(since.elapsed() < PATIENCE, "no launch is noted in {}", self.log.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn noted(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        // A line that is being written has no end yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| line.trim_start_matches("Executing ").to_owned()).collect()
    }
}
