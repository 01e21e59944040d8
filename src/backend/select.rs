//! Which backend runs: one row for each that can be built, chosen at run time by name. Features add rows; they never choose.

use crate::TrainBackend;

/// A backend by the name it has on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendName {
    /// burn-flex: the CPU.
    Flex,
}

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
    #[error("unknown backend `{name}`; the names are auto {}", ALL.map(|(_, name, _)| name).join(" "))]
    Unknown {
        /// The name given.
        name: String,
    },
    /// The name is known, but this binary was built without it.
    #[error("backend `{name}` is not built in; build with `--features {name}`")]
    NotBuilt {
        /// The backend's name, which is also its feature's.
        name: &'static str,
    },
    /// Nothing was built in at all.
    #[error("no backend is built in; build with `--features flex`")]
    NoneBuilt,
}

/// Name on the command line, and whether this binary has it.
const ALL: [(BackendName, &str, bool); 1] = [(BackendName::Flex, "flex", cfg!(feature = "flex"))];

/// The backends this binary was built with, fastest first.
pub fn built() -> Vec<BackendName> {
    ALL.iter().filter(|(_, _, built)| *built).map(|(backend, ..)| *backend).collect()
}

impl BackendName {
    /// The backend of this name; `auto` is the fastest one built in whose hardware is present.
    ///
    /// # Errors
    /// If the name is unknown, or not built in.
    pub fn named(name: &str) -> Result<Self, SelectError> {
        if name == "auto" {
            return built().first().copied().ok_or(SelectError::NoneBuilt);
        }
        match ALL.iter().find(|(_, known, _)| *known == name) {
            None => Err(SelectError::Unknown { name: name.to_owned() }),
            Some((_, name, false)) => Err(SelectError::NotBuilt { name }),
            Some((backend, _, true)) => Ok(*backend),
        }
    }
}

impl std::fmt::Display for BackendName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let row = ALL.iter().find(|(backend, ..)| backend == self);
        f.write_str(row.map_or("unknown", |(_, name, _)| name))
    }
}

/// Runs `job` on the named backend's default device.
///
/// # Errors
/// If the backend is not built in.
pub fn dispatch<J: Job>(backend: BackendName, job: J) -> Result<J::Output, SelectError> {
    match backend {
        #[cfg(feature = "flex")]
        BackendName::Flex => Ok(job.run::<burn::backend::Autodiff<burn_flex::Flex>>(Default::default())),
        #[allow(unreachable_patterns)]
        other => {
            let _ = job;
            let row = ALL.iter().find(|(backend, ..)| *backend == other);
            Err(row.map_or(SelectError::NoneBuilt, |(_, name, _)| SelectError::NotBuilt { name }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = BackendName::named("tpu").unwrap_err();
        assert_eq!(error.to_string(), "unknown backend `tpu`; the names are auto flex");
    }

    #[test]
    fn auto_is_the_first_built_and_prints_its_name() {
        let built = built();
        assert_eq!(BackendName::named("auto").ok(), built.first().copied());
        for backend in built {
            assert_eq!(BackendName::named(&backend.to_string()), Ok(backend));
        }
    }
}
