//! A panic, of a driver that lost its device or of ours, ends a command as any failure does: one line, status 1, and what was saved is whole.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};

/// What the last panic said, and where. One for all threads: a pool's panics come out in another than they began in.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// The outcome of `work`, a panic being an error. Panics are no longer printed where they happen, unless `RUST_BACKTRACE` asks for it.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let wanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let printing = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or("without a word");
        let place = panic.location().map_or(String::new(), |location| format!(" ({location})"));
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{said}{place}"));
        if wanted {
            printing(panic);
        }
    }));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let said = LAST.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        Err(anyhow!("the device or firebrick itself failed: {said}; with RUST_BACKTRACE=1 it says where"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_what_and_where() {
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7);
        let error = guarded::<()>(|| panic!("the device {} was lost", 3)).unwrap_err().to_string();
        assert!(error.contains("the device 3 was lost (src/cli/panics.rs:"), "{error}");
        let in_a_pool = || -> Result<()> {
            std::thread::scope(|s| s.spawn(|| panic!("elsewhere")).join()).map_err(|p| std::panic::resume_unwind(p))
        };
        assert!(guarded(in_a_pool).unwrap_err().to_string().contains("elsewhere"));
    }
}
