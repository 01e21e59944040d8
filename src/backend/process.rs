//! This process: its memory, its threads.

/// The most memory this process has had resident, in bytes; `None` where the system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: `usage` is writable and as large as the call expects; it is read only if the call says that it was filled.
        let usage = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
                return None;
            }
            usage.assume_init()
        };
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(usage.ru_maxrss).ok().map(|peak| peak * unit)
    }
    #[cfg(not(unix))]
    None
}

/// Sets how many threads the CPU kernels use, before the first of them runs.
///
/// # Errors
/// If the threads have been started already.
pub fn set_threads(threads: usize) -> Result<(), String> {
    #[cfg(feature = "flex")]
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|problem| problem.to_string())?;
    let _ = threads;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(unix)]
    fn the_peak_grows_with_what_is_touched() {
        let before = super::peak_rss_bytes().unwrap();
        let block = vec![1u8; 64 << 20];
        assert!(super::peak_rss_bytes().unwrap() >= before.max(64 << 20), "{}", block.len());
    }
}
