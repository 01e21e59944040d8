//! SIGINT and SIGTERM: the first asks the work to stop after what it is doing, the second leaves at once.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, anyhow};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// From now on a file that grows beyond what the shell allows (`ulimit -f`) is an error of the write, where the system would end the process.
pub fn outlive_file_limits() {
    #[cfg(unix)]
    // If it cannot be taken over, it is as it was.
    flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).ok();
}

/// SIGINT and SIGTERM, each with whether it ends the process at once when it comes; taken over when that is first asked for, and never given back:
/// a signal whose last handler is removed would be ignored from then on.
struct TakenOver {
    signals: [(i32, Arc<AtomicBool>); 2],
    received: Arc<AtomicUsize>,
}

impl TakenOver {
    fn get() -> Result<&'static Self> {
        static TAKEN_OVER: OnceLock<std::result::Result<TakenOver, String>> = OnceLock::new();
        TAKEN_OVER
            .get_or_init(|| Self::new().map_err(|problem| problem.to_string()))
            .as_ref()
            .map_err(|problem| anyhow!("{problem}"))
    }

    fn new() -> std::io::Result<Self> {
        let received = Arc::new(AtomicUsize::new(0));
        let signals = [SIGINT, SIGTERM].map(|signal| (signal, Arc::new(AtomicBool::new(true))));
        for (signal, at_once) in &signals {
            // In this order: a first signal that somebody listens for finds the shutdown unarmed and arms it.
            flag::register_conditional_shutdown(*signal, 128 + signal, at_once.clone())?;
            flag::register(*signal, at_once.clone())?;
            flag::register_usize(*signal, received.clone(), *signal as usize)?;
        }
        Ok(Self { signals, received })
    }
}

/// Lets the first signal end the process at once while it exists, whoever listens: for what can be broken off anywhere.
pub struct LeaveAtOnce([bool; 2]);

impl LeaveAtOnce {
    pub fn begin() -> Result<Self> {
        let taken = TakenOver::get()?;
        Ok(Self(taken.signals.each_ref().map(|(_, at_once)| at_once.swap(true, Ordering::Relaxed))))
    }
}

impl Drop for LeaveAtOnce {
    fn drop(&mut self) {
        let Ok(taken) = TakenOver::get() else { return };
        taken.signals.iter().zip(self.0).for_each(|((_, at_once), before)| at_once.store(before, Ordering::Relaxed));
    }
}

/// Lets the first signal end the process as soon as this is done, also while the process waits for its input.
pub fn leave_after(clean: impl FnOnce() + Send + 'static) -> Result<()> {
    const POLL: Duration = Duration::from_millis(20);
    let signals = Signals::listen()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while !signals.stop() {
            std::thread::sleep(POLL);
        }
        clean();
        std::process::exit(signals.status());
    })?;
    Ok(())
}

/// Listens for signals from its creation on.
#[derive(Clone)]
pub struct Signals {
    heard: &'static TakenOver,
    which: &'static [i32],
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

    fn listen_to(which: &'static [i32]) -> Result<Self> {
        let signals = Self { heard: TakenOver::get()?, which };
        signals.disarm();
        Ok(signals)
    }

    /// Lets the next signal be a first one.
    fn disarm(&self) {
        let mine = self.heard.signals.iter().filter(|(signal, _)| self.which.contains(signal));
        mine.for_each(|(_, at_once)| at_once.store(false, Ordering::Relaxed));
    }

    /// Whether to stop.
    pub fn stop(&self) -> bool {
        self.heard.received.load(Ordering::Relaxed) != 0
    }

    /// Whether there was a signal since this was asked last; the next one is again a first.
    pub fn take(&self) -> bool {
        self.disarm();
        self.heard.received.swap(0, Ordering::Relaxed) != 0
    }

    /// The status to exit with: 130 after SIGINT, 143 after SIGTERM, 0 after neither.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status() as u8)
    }

    fn status(&self) -> i32 {
        match self.heard.received.load(Ordering::Relaxed) {
            0 => 0,
            signal => 128 + signal as i32,
        }
    }
}
