//! Which instructions the kernels use: the widest that the processor has, or fewer, to find out whether the others are right too.

use std::sync::OnceLock;

use pulp::Arch;

#[cfg(target_arch = "x86_64")]
use super::amx;

/// The environment variable that limits them, to one of [`InstructionSet::NAMES`]: for tests.
const LIMIT: &str = "FIREBRICK_CPU";

/// An instruction set that kernels exist for, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum InstructionSet {
    /// What every processor of the architecture has: SSE2, NEON.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512, and products of whole matrices.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl InstructionSet {
    #[cfg(target_arch = "x86_64")]
    const NAMES: [(&str, Self); 4] =
        [("portable", Self::Portable), ("avx2", Self::Avx2), ("avx512", Self::Avx512), ("amx", Self::Amx)];
    #[cfg(not(target_arch = "x86_64"))]
    const NAMES: [(&str, Self); 1] = [("portable", Self::Portable)];

    /// The widest this processor has, or the one that `FIREBRICK_CPU` names if that is narrower.
    ///
    /// # Panics
    /// If the variable names none: whoever sets it must not believe that something else was tested.
    pub(crate) fn detect() -> Self {
        static FOUND: OnceLock<InstructionSet> = OnceLock::new();
        *FOUND.get_or_init(|| Self::limit().map_or(Self::widest(), |limit| limit.min(Self::widest())))
    }

    /// The one that `FIREBRICK_CPU` names.
    fn limit() -> Option<Self> {
        let name = std::env::var(LIMIT).ok()?;
        Some(Self::named(&name).unwrap_or_else(|problem| panic!("{problem}")))
    }

    fn named(name: &str) -> Result<Self, String> {
        let known = || Self::NAMES.map(|(name, _)| name).join(", ");
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, set)| *set).ok_or_else(|| format!("{LIMIT} is `{name}`; here it can be {}", known()))
    }

    fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                return match is_x86_feature_detected!("avx512f") {
                    true if amx::available() => Self::Amx,
                    true => Self::Avx512,
                    false => Self::Avx2,
                };
            }
        }
        Self::Portable
    }

    /// All that may be used here, the widest first.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        Self::NAMES.iter().rev().map(|(_, set)| *set).filter(|set| *set <= Self::detect()).collect()
    }

    /// As `FIREBRICK_CPU` calls it, unless that is what records were first made with.
    pub(crate) fn label(self) -> Option<&'static str> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => None,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Portable => None,
            #[cfg(target_arch = "x86_64")]
            _ => Self::NAMES.iter().find(|(_, set)| *set == self).map(|(name, _)| *name),
        }
    }

    /// As people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "AMX",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            Self::Portable if cfg!(target_arch = "x86_64") => "SSE2",
            Self::Portable if cfg!(target_arch = "aarch64") => "NEON",
            Self::Portable => "portable",
        }
    }

    /// What pulp compiles vectorised loops for.
    #[inline]
    pub(super) fn arch(self) -> Arch {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Amx => Arch::new(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map_or(Arch::Scalar, Arch::V3),
            #[cfg(target_arch = "x86_64")]
            Self::Portable => Arch::Scalar,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Portable => Arch::new(),
        }
    }
}

/// Instructions for sums of products of bytes. Processors have them whatever the width of their other vectors: desktops AVX-VNNI without
/// AVX-512, early servers AVX-512 without VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteProducts {
    /// What the compiler makes of a loop.
    Portable,
    /// Sums of four products of ARM, in 128 bits.
    #[cfg(target_arch = "aarch64")]
    Dot,
    /// Sums of two products, in sixteen bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Sums of four products, in 256 bits.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// Sums of four products, in 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl ByteProducts {
    /// The fastest this processor has; under a limit by `FIREBRICK_CPU` only what belongs to that set.
    ///
    /// # Panics
    /// If the variable names none.
    pub(crate) fn detect() -> Self {
        static FOUND: OnceLock<ByteProducts> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let available = Self::available();
            let of = |set| match set {
                InstructionSet::Portable => Self::Portable,
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2 => Self::Avx2,
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512 | InstructionSet::Amx => available[0],
            };
            let limited = InstructionSet::limit().map(of).filter(|set| available.contains(set));
            limited.unwrap_or(available[0])
        })
    }

    /// All that this processor has, the fastest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if InstructionSet::widest() >= InstructionSet::Avx2 {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                all.push(Self::Avx512Vnni);
            }
            if is_x86_feature_detected!("avxvnni") {
                all.push(Self::AvxVnni);
            }
            all.push(Self::Avx2);
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            all.push(Self::Dot);
        }
        all.push(Self::Portable);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_name_or_an_error() {
        assert_eq!(InstructionSet::named("portable"), Ok(InstructionSet::Portable));
        let problem = InstructionSet::named("mmx").unwrap_err();
        assert!(problem.contains("FIREBRICK_CPU is `mmx`") && problem.contains("portable"), "{problem}");
        assert_eq!(InstructionSet::available().last(), Some(&InstructionSet::Portable));
        assert!(InstructionSet::available().contains(&InstructionSet::detect()));
    }

    #[test]
    fn products_of_bytes_obey_the_limit_too() {
        let found = ByteProducts::detect();
        assert!(ByteProducts::available().contains(&found));
        match InstructionSet::limit() {
            Some(InstructionSet::Portable) => assert_eq!(found, ByteProducts::Portable),
            #[cfg(target_arch = "x86_64")]
            Some(InstructionSet::Avx2) => assert!([ByteProducts::Portable, ByteProducts::Avx2].contains(&found)),
            _ => assert_eq!(found, ByteProducts::available()[0]),
        }
    }
}
