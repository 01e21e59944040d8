//! What a checkpoint holds besides the adapter: where the run stood, and the optimizer's moments.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use firebrick_backend::KernelBackend;
use serde::{Deserialize, Serialize};

use super::{Saved, manifest};
use crate::checkpoint::{Limits, TensorFile, write_atomic};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::file::read_limited;
use crate::lora::{Adapter, matrix, write_matrices};
use crate::train::adamw::{AdamW, AdamWConfig};

/// Of the format of a checkpoint folder.
pub(super) const VERSION: u32 = 1;
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
/// What a checkpoint has to hold.
pub(super) const FILES: &[&str] = &["adapter_config.json", "adapter_model.safetensors", OPTIMIZER, STATE];
const LIMIT: u64 = 1 << 20;
/// The names that PyTorch gives AdamW's moments.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// How far a run has come in its data and its steps. Order, dropout and learning rates follow from these numbers and the seed, so that no state
/// of a random generator needs to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Steps taken, those included whose gradient was not finite.
    pub step: usize,
    /// Bins of examples taken from the order of the epochs: examples, where they are not packed.
    pub taken: usize,
    /// The last so many steps had no finite gradient.
    pub skipped_in_row: usize,
}

/// Where a run stood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// How far it had come.
    #[serde(flatten)]
    pub cursor: Cursor,
    /// Updates of the optimizer.
    pub updates: i32,
    /// Steps that the whole run was to take.
    pub total: usize,
    /// The validation loss after this step, where it was measured.
    pub valid_loss: Option<f64>,
    /// What decides the run and has to be the same when it continues: setting → value.
    pub settings: BTreeMap<String, String>,
}

impl std::ops::Deref for State {
    type Target = Cursor;

    fn deref(&self) -> &Cursor {
        &self.cursor
    }
}

impl State {
    /// Refuses settings under which the run would go on differently.
    ///
    /// # Errors
    /// [`Error::Settings`], with every setting that differs.
    pub(crate) fn check(&self, folder: &Path, settings: &BTreeMap<String, String>) -> Result<()> {
        let absent = "(absent)".to_owned();
        let names = self.settings.keys().chain(settings.keys().filter(|name| !self.settings.contains_key(*name)));
        let differing = names.filter(|name| self.settings.get(*name) != settings.get(*name)).map(|name| {
            let value = |of: &BTreeMap<String, String>| of.get(name).unwrap_or(&absent).clone();
            (name.clone(), value(&self.settings), value(settings))
        });
        let differing: Vec<_> = differing.collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::Settings { folder: folder.into(), differing })
    }
}

/// Writes state and optimizer into a checkpoint's folder.
pub(super) fn write<B: KernelBackend>(
    disk: &dyn Disk,
    folder: &Path,
    state: &State,
    optimizer: &AdamW<B>,
) -> Result<()> {
    let moments = optimizer.moments().iter().flat_map(|(name, pair)| {
        MOMENTS.into_iter().zip(pair).map(move |(moment, tensor)| (format!("{name}.{moment}"), tensor.clone()))
    });
    write_matrices(disk, &folder.join(OPTIMIZER), moments.collect(), &[])?;
    let path = folder.join(STATE);
    let text = serde_json::to_string_pretty(state).map_err(|problem| Error::malformed(&path, problem.to_string()))?;
    write_atomic(disk, &path, text.as_bytes())
}

/// The state of a checkpoint, once all of its files are known to be whole.
pub(super) fn read(folder: &Path) -> Result<State> {
    manifest::verify(folder)?;
    peek(folder)
}

/// The state of a checkpoint, whole or not.
pub(super) fn peek(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    serde_json::from_slice(&read_limited(&path, LIMIT)?)
        .map_err(|problem| Error::malformed(&path, format!("not the state of a run: {problem}")))
}

/// The optimizer of a checkpoint, on a device.
///
/// # Errors
/// If its file does not hold two moments for each matrix of the adapter.
pub(crate) fn optimizer<B: KernelBackend>(
    saved: &Saved,
    config: AdamWConfig,
    adapter: &Adapter<B>,
    device: &B::Device,
) -> Result<AdamW<B>> {
    let path = saved.folder.join(OPTIMIZER);
    let file = TensorFile::open(&path, &Limits::ADAPTER)?;
    let mut moments = BTreeMap::new();
    let sides = adapter.modules().iter().flat_map(|(path, module)| {
        [(format!("{path}.lora_A"), module.a.dims()), (format!("{path}.lora_B"), module.b.dims())]
    });
    for (name, shape) in sides {
        let moment = |moment: &str| -> Result<Tensor<B, 2>> {
            let name = format!("{name}.{moment}");
            let tensor = matrix::<B>(&file, &name, device)?;
            if tensor.dims() != shape {
                let problem = format!("tensor `{name}` is {:?}, its parameter {shape:?}", tensor.dims());
                return Err(Error::malformed(file.path(), problem));
            }
            Ok(tensor)
        };
        // Before the first update there are none.
        if saved.state.updates > 0 {
            moments.insert(name.clone(), [moment(MOMENTS[0])?, moment(MOMENTS[1])?]);
        }
    }
    Ok(AdamW::restored(config, saved.state.updates, moments))
}
