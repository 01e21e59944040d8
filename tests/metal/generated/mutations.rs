//! Kernels made wrong on purpose.

/// In a kernel's source, for that, by which it must be noticed.
pub(super) const MUTATIONS: &[(&str, &str, &str, &str)] =
    &[("rms_norm::norm", "threadgroup_barrier(mem_flags::mem_threadgroup);", "", "threadgroup memory")];
