//! SIGINT and SIGTERM: the first asks the work to stop after what it is doing, the second leaves at once.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// From now on a file that grows beyond what the shell allows (`ulimit -f`) is an error of the write, where the system would end the process.
pub fn outlive_file_limits() {
    #[cfg(unix)]
    // If it cannot be taken over, it is as it was.
    flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).ok();
}

/// Listens for signals from its creation on.
#[derive(Clone)]
pub struct Signals {
    received: Arc<AtomicUsize>,
    armed: Arc<AtomicBool>,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM.
    pub fn listen() -> Result<Self> {
        Self::listen_to(&[SIGINT, SIGTERM])
    }

    /// Takes over SIGINT, which is Ctrl-C.
    pub fn listen_to_interrupts() -> Result<Self> {
        Self::listen_to(&[SIGINT])
    }

    fn listen_to(signals: &[i32]) -> Result<Self> {
        let received = Arc::new(AtomicUsize::new(0));
        let armed = Arc::new(AtomicBool::new(false));
        for &signal in signals {
            // In this order: a first signal finds the shutdown unarmed and arms it.
            flag::register_conditional_shutdown(signal, 128 + signal, armed.clone())?;
            flag::register(signal, armed.clone())?;
            flag::register_usize(signal, received.clone(), signal as usize)?;
        }
        Ok(Self { received, armed })
    }

    /// Whether to stop.
    pub fn stop(&self) -> bool {
        self.received.load(Ordering::Relaxed) != 0
    }

    /// Whether there was a signal since this was asked last; the next one is again a first.
    pub fn take(&self) -> bool {
        self.armed.store(false, Ordering::Relaxed);
        self.received.swap(0, Ordering::Relaxed) != 0
    }

    /// The status to exit with: 130 after SIGINT, 143 after SIGTERM, 0 after neither.
    pub fn exit_code(&self) -> ExitCode {
        match self.received.load(Ordering::Relaxed) {
            0 => ExitCode::SUCCESS,
            signal => ExitCode::from(128 + signal as u8),
        }
    }
}
