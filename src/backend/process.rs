//! This process: its memory, its threads.

/// The most memory this process has had resident, in bytes; `None` where the system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    // `getrusage` counts what the process that started this one held, which Linux carries over into the new program.
    #[cfg(target_os = "linux")]
    if let Some(kilobytes) = proc_number("/proc/self/status", "VmHWM:") {
        return Some(kilobytes * 1024);
    }
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
    #[cfg(feature = "cpu")]
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|problem| problem.to_string())?;
    let _ = threads;
    Ok(())
}

/// Starts the threads of the CPU kernels, of which the calling one is the first, so that what it computes is not handed over to another and
/// waited for. So many, or as many as the machine has processors.
///
/// For a thread that lives as long as the process and waits for no other that computes: where it is the only one of its pool, another's ops
/// would wait for it.
///
/// # Errors
/// If the threads have been started already.
pub fn start_threads_with_this_one(threads: Option<usize>) -> Result<(), String> {
    #[cfg(feature = "cpu")]
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .use_current_thread()
        .build_global()
        .map_err(|problem| problem.to_string())?;
    let _ = threads;
    Ok(())
}

/// The processor's name as it tells it, such as `Apple M3 Pro`, else its architecture.
pub fn cpu_name() -> String {
    named_cpu().filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(not(target_vendor = "apple"))]
fn named_cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(target_vendor = "apple")]
fn named_cpu() -> Option<String> {
    let mut text = [0u8; 256];
    let mut length = text.len();
    let name = c"machdep.cpu.brand_string";
    // SAFETY: `text` is writable for `length` bytes, which the call lowers to what it wrote; nothing is set.
    let status =
        unsafe { libc::sysctlbyname(name.as_ptr(), text.as_mut_ptr().cast(), &mut length, std::ptr::null_mut(), 0) };
    let text = text.get(..length).filter(|_| status == 0)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').trim().to_owned())
}

/// The memory of this computer in bytes; `None` where the system does not say.
pub fn memory_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        // SAFETY: these calls read a setting of the system and nothing else.
        let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGE_SIZE)) };
        Some(u64::try_from(pages).ok()? * u64::try_from(page).ok()?)
    }
    #[cfg(not(unix))]
    None
}

/// The memory this process has resident now, in bytes; `None` where the system does not say.
pub fn rss_bytes() -> Option<u64> {
    proc_number("/proc/self/status", "VmRSS:").map(|kilobytes| kilobytes * 1024)
}

/// From now on a large block goes back to the system when it is freed. By itself glibc keeps blocks of up to 32 MB for later ones, which
/// saves page faults but leaves gaps: a training run's peak was up to a third higher for them, and no two runs had the same. Where there is
/// another C library nothing changes.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE_BYTES: libc::c_int = 1 << 20;
        // SAFETY: sets a number that the allocator reads under its own lock.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
    }
}

/// The number behind a key in one of the system's files about processes.
fn proc_number(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes that this process can still allocate, by what the system has left, by the limit on its address space and by that of its control
/// group, whichever is least; `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let free = proc_number("/proc/meminfo", "MemAvailable:").map(|kilobytes| kilobytes * 1024);
    let address_space = proc_number("/proc/self/limits", "Max address space")
        .and_then(|limit| Some(limit.saturating_sub(proc_number("/proc/self/status", "VmSize:")? * 1024)));
    [free, address_space, control_group_bytes()].into_iter().flatten().min()
}

/// Bytes that this process's control group leaves it, as version 2 and 1 say them. What the group holds of files can be taken back.
fn control_group_bytes() -> Option<u64> {
    let read = |path: String| std::fs::read_to_string(path).ok();
    let groups = read("/proc/self/cgroup".into())?;
    let left = |group: &str| {
        let mut fields = group.splitn(3, ':');
        let (controllers, path) = (fields.nth(1)?, fields.next()?.trim_end_matches('/'));
        let (folder, most, used) = match controllers {
            "" => (format!("/sys/fs/cgroup{path}"), "memory.max", "memory.current"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => return None,
        };
        let number = |name: &str| read(format!("{folder}/{name}"))?.trim().parse::<u64>().ok();
        let files = read(format!("{folder}/memory.stat")).and_then(|text| {
            let value = |key| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            Some(value("inactive_file ")? + value("active_file ")?)
        });
        Some(number(most)?.saturating_sub(number(used)?.saturating_sub(files.unwrap_or(0))))
    };
    groups.lines().filter_map(left).min()
}

/// The operating system and its version as it tells them.
pub fn os_name() -> String {
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", std::env::consts::OS, version.trim()).trim_end().to_owned()
}

/// Threads of the CPU kernels.
pub fn threads() -> usize {
    #[cfg(feature = "cpu")]
    {
        rayon::current_num_threads()
    }
    #[cfg(not(feature = "cpu"))]
    {
        std::thread::available_parallelism().map_or(1, usize::from)
    }
}

/// The widest vector instructions that the CPU kernels of this build use on this processor.
pub fn cpu_instructions() -> &'static str {
    #[cfg(feature = "cpu")]
    {
        crate::targets::cpu::InstructionSet::detect().name()
    }
    #[cfg(not(feature = "cpu"))]
    {
        "no kernels"
    }
}

/// Their name as `FIREBRICK_CPU` has it, which tells processors of a kind apart in records; `None` of what the first records were made with.
pub fn instructions_label() -> Option<&'static str> {
    #[cfg(feature = "cpu")]
    {
        crate::targets::cpu::InstructionSet::detect().label()
    }
    #[cfg(not(feature = "cpu"))]
    {
        None
    }
}

/// Bytes from which a buffer is worth large pages: smaller ones come from memory that was used before.
#[cfg(target_os = "linux")]
const LARGE_BYTES: usize = 16 << 20;

/// Asks for large pages below a buffer that has not been touched yet: a fault for each 4 KB costs more than most ops that fill it. Its
/// content stays as it is.
pub fn prefer_large_pages<T>(buffer: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let bytes = size_of_val(buffer);
        if bytes < LARGE_BYTES {
            return;
        }
        let start = buffer.as_mut_ptr().cast::<u8>();
        let skipped = start.align_offset(PAGE);
        // SAFETY: the range of whole pages lies inside the buffer, which is ours; the advice changes no content. If the kernel does not
        // take it, nothing is lost.
        unsafe { libc::madvise(start.add(skipped).cast(), (bytes - skipped) / PAGE * PAGE, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = buffer;
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
