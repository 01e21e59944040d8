//! Training that survives: the state of a run in folders `step-N` beside its adapter, each there whole or not at all, and which of them a run
//! continues from. What is in such a folder: `checkpoint/state.rs`; how damage is noticed: `checkpoint/manifest.rs`.

mod manifest;
mod state;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use firebrick_backend::KernelBackend;

use super::adamw::AdamW;
use crate::disk::{Disk, System};
use crate::error::{Error, Result};
use crate::lora::{Adapter, Format};
use manifest::Hashing;

pub(crate) use state::optimizer;
pub use state::{Cursor, State};

/// Steps between two checkpoints, where nobody says how many.
pub const DEFAULT_EVERY: usize = 100;
/// Where nobody says how many steps, a checkpoint is at most this much work behind.
const AT_LEAST_EACH: Duration = Duration::from_secs(600);
/// Checkpoints kept besides the best, where nobody says how many: one may turn out damaged.
pub const DEFAULT_KEEP_LAST: usize = 2;

/// The checkpoints of one run in its folder, which is locked for as long as this value lives.
///
/// A checkpoint is written as `step-N.tmp`: first the adapter in PEFT's format, which can be used as it is, the optimizer's moments and the
/// state, then a manifest with the SHA-256 of each; then files and folder are brought to disk, and only then does it get the name `step-N`.
pub struct Checkpoints {
    folder: PathBuf,
    every: Option<usize>,
    keep_last: usize,
    disk: Arc<dyn Disk>,
    saved: Option<usize>,
    last_write: Instant,
    _lock: File,
}

/// A checkpoint whose every file is as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    folder: PathBuf,
    state: State,
}

/// What a folder has to continue from.
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest checkpoint that is whole.
    pub saved: Option<Saved>,
    /// Newer ones that are not, and what is wrong with them.
    pub damaged: Vec<(PathBuf, Error)>,
}

impl Checkpoints {
    /// Those in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made, or another run has it locked.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let path = folder.join(".lock");
        let lock = File::create(&path).map_err(Error::io(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { folder: folder.into() }),
            Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
        }
        Ok(Self {
            folder: folder.into(),
            every: None,
            keep_last: DEFAULT_KEEP_LAST,
            disk: Arc::new(System),
            saved: None,
            last_write: Instant::now(),
            _lock: lock,
        })
    }

    /// With a checkpoint after each so many steps; without, after each hundred, or ten minutes.
    pub fn every(mut self, steps: Option<usize>) -> Self {
        self.every = steps;
        self
    }

    /// With the newest so many kept, and the one of the lowest validation loss besides.
    pub fn keep_last(mut self, count: usize) -> Self {
        self.keep_last = count.max(1);
        self
    }

    /// Writing to another disk than the machine's, as tests do.
    pub fn on(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest checkpoint that is whole: each file's size and SHA-256 are compared with the manifest.
    ///
    /// # Errors
    /// If the folder cannot be listed. A damaged checkpoint is not an error while an older one is whole; it is told.
    pub fn newest(&self) -> Result<Newest> {
        let mut newest = Newest::default();
        for (_, folder) in self.list()? {
            match state::read(&folder) {
                Ok(state) => {
                    newest.saved = Some(Saved { folder, state });
                    break;
                }
                Err(problem) => newest.damaged.push((folder, problem)),
            }
        }
        Ok(newest)
    }

    /// Whether a checkpoint is due after this step.
    pub(crate) fn is_due(&self, step: usize) -> bool {
        match self.every {
            Some(every) => step.is_multiple_of(every.max(1)),
            None => step.is_multiple_of(DEFAULT_EVERY) || self.last_write.elapsed() >= AT_LEAST_EACH,
        }
    }

    /// Whether the checkpoint of this step is there, written or continued from.
    pub(crate) fn has(&self, step: usize) -> bool {
        self.saved == Some(step)
    }

    /// Makes room for a run that continues from `from`, or begins: what an interrupted writer left is removed, and checkpoints that are newer
    /// than `from`, hence damaged, are called `step-N.damaged`.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn begin(&mut self, from: Option<&Saved>) -> Result<()> {
        for name in names(&self.folder)? {
            if name.strip_suffix(".tmp").is_some_and(|name| number(name).is_some()) {
                let path = self.folder.join(name);
                self.disk.remove_folder(&path).map_err(Error::io(&path))?;
            }
        }
        let step = from.map_or(0, |saved| saved.state.step);
        for (number, folder) in self.list()? {
            if number > step {
                let aside = folder.with_extension("damaged");
                if aside.exists() {
                    self.disk.remove_folder(&aside).map_err(Error::io(&aside))?;
                }
                self.disk.rename(&folder, &aside).map_err(Error::io(&folder))?;
            }
        }
        self.saved = from.map(|saved| saved.state.step);
        self.last_write = Instant::now();
        Ok(())
    }

    /// Removes every checkpoint: those of a run that is done and is made again.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn clear(&mut self) -> Result<()> {
        for (_, folder) in self.list()? {
            self.disk.remove_folder(&folder).map_err(Error::io(&folder))?;
        }
        Ok(())
    }

    /// Writes the checkpoint of a step, then removes those that are no longer kept.
    ///
    /// # Errors
    /// If the disk refuses; the older checkpoints are then all there.
    pub(crate) fn save<B: KernelBackend>(
        &mut self,
        state: &State,
        adapter: &Adapter<B>,
        optimizer: &AdamW<B>,
    ) -> Result<()> {
        let path = self.step_folder(state.step);
        let temporary = path.with_extension("tmp");
        let disk = &*self.disk;
        if temporary.exists() {
            disk.remove_folder(&temporary).map_err(Error::io(&temporary))?;
        }
        disk.create_folder(&temporary).map_err(Error::io(&temporary))?;
        let hashing = Hashing::new(disk);
        adapter.write(&hashing, &temporary, Format::Peft)?;
        state::write(&hashing, &temporary, state, optimizer)?;
        hashing.write_manifest(&temporary, adapter.base())?;
        disk.sync_folder(&temporary).map_err(Error::io(&temporary))?;
        if path.exists() {
            // Of this step, but damaged: a whole one is never written again.
            disk.remove_folder(&path).map_err(Error::io(&path))?;
        }
        disk.rename(&temporary, &path).map_err(Error::io(&path))?;
        disk.sync_folder(&self.folder).map_err(Error::io(&self.folder))?;
        self.saved = Some(state.step);
        self.last_write = Instant::now();
        self.prune()
    }

    /// Keeps the newest and the best.
    fn prune(&self) -> Result<()> {
        let list = self.list()?;
        // One whose loss cannot be read is not the best.
        let loss = |folder: &Path| state::peek(folder).ok().and_then(|state| state.valid_loss);
        let losses = list.iter().filter_map(|(step, folder)| Some((*step, loss(folder)?)));
        let best = losses.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(step, _)| step);
        for (step, folder) in list.iter().skip(self.keep_last) {
            if Some(*step) != best {
                self.disk.remove_folder(folder).map_err(Error::io(folder))?;
            }
        }
        Ok(())
    }

    fn step_folder(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Step and folder of each checkpoint, newest first.
    fn list(&self) -> Result<Vec<(usize, PathBuf)>> {
        let mut steps: Vec<usize> = names(&self.folder)?.iter().filter_map(|name| number(name)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps.into_iter().map(|step| (step, self.step_folder(step))).collect())
    }
}

impl Saved {
    /// Its folder, which is an adapter folder too.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the run stood.
    pub fn state(&self) -> &State {
        &self.state
    }
}

/// The number of a name `step-N` as we write it.
fn number(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("step-")?;
    let number: usize = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = folder.read_dir().map_err(Error::io(folder))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<std::io::Result<_>>().map_err(Error::io(folder))
}
