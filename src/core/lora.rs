//! Low-rank adapters as values: created, loaded, attached to a model handle, merged, saved. The base never changes, so swapping an adapter
//! is taking another handle, and un-merging is keeping the original.
//!
//! Source: Hu et al. 2021; PEFT's `LoraConfig` for names and defaults; Kalajdzievski 2023 for rank-stabilised scaling.

mod mlx;
mod peft;
mod registry;
mod targets;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use firebrick_backend::KernelBackend;
use firebrick_backend::ops::embedding::unpacked;
use firebrick_backend::ops::linear::{arranged, linear};
use firebrick_backend::packed::value_dtype;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};

use crate::checkpoint::{TensorFile, TensorSpecification, write_atomic, write_safetensors};
use crate::disk::{Disk, System};
use crate::error::{Error, Result};
use crate::file::{need, resolve};
use crate::model::Handle;
use crate::nn::{Linear, Lora};
use crate::random::key;

pub use registry::Adapters;
pub use targets::Targets;

/// What a new adapter should be.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f64,
    /// Probability of dropping an input element of `A` in training.
    pub dropout: f64,
    /// Which linears are adapted.
    pub targets: Targets,
    /// Scale by `alpha / √rank` instead.
    pub rslora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = Targets::Names(vec!["q_proj".into(), "v_proj".into()]);
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets, rslora: false }
    }
}

impl LoraConfig {
    /// The defaults for an encoder, whose linears have other names.
    pub fn encoder() -> Self {
        Self { targets: Targets::Names(vec!["query".into(), "value".into()]), ..Self::default() }
    }

    /// The factor on the update.
    pub fn scale(&self) -> f64 {
        scale(self.alpha, self.rank, self.rslora)
    }

    fn validate(&self) -> Result<()> {
        let out_of_bounds = |name, value: f64, bounds: &str| {
            Err(Error::OutOfBounds { name, value: value.to_string(), bounds: bounds.into() })
        };
        if self.rank == 0 || self.rank > 65_536 {
            return out_of_bounds("rank", self.rank as f64, "1 to 65,536");
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return out_of_bounds("alpha", self.alpha, "above 0");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return out_of_bounds("dropout", self.dropout, "0 to below 1");
        }
        Ok(())
    }
}

fn scale(alpha: f64, rank: usize, rslora: bool) -> f64 {
    alpha / if rslora { (rank as f64).sqrt() } else { rank as f64 }
}

/// One module's matrices.
#[derive(Clone, Debug)]
pub struct Module<B: KernelBackend> {
    /// `A`, `[rank, in]`, f32.
    pub a: Tensor<B, 2>,
    /// `B`, `[out, rank]`, f32.
    pub b: Tensor<B, 2>,
    /// The factor on `B·A`.
    pub scale: f64,
}

/// The format of an adapter folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Hugging Face PEFT: `adapter_config.json`, `adapter_model.safetensors`.
    Peft,
    /// mlx-lm: `adapter_config.json`, `adapters.safetensors`.
    Mlx,
}

/// An adapter: low-rank updates for some linears of a base model. Cloning shares the matrices.
#[derive(Clone, Debug)]
pub struct Adapter<B: KernelBackend> {
    modules: BTreeMap<String, Module<B>>,
    /// The `adapter_config.json` of PEFT, key by key, kept so that saving what was loaded changes nothing.
    config: Map<String, Value>,
    dropout: f64,
    /// Fingerprint of the base it was made for, where known.
    base: Option<String>,
}

impl<B: KernelBackend> Adapter<B> {
    /// A new adapter for `model`: `A` Kaiming-uniform with `a = √5`, so uniform within `±1/√in`, and `B` zero, as in PEFT. It changes
    /// nothing until it is trained.
    ///
    /// # Errors
    /// If a value is out of bounds or the targets match no linear.
    pub fn create<M: Handle<B> + ?Sized>(model: &M, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let device = model.place();
        let paths = config.targets.select(&linear_shapes(model))?;
        let mut modules = BTreeMap::new();
        for (path, [out, inputs]) in paths {
            let mut random = ChaCha8Rng::seed_from_u64(key(&[&seed.to_le_bytes(), path.as_bytes()]));
            let bound = 1.0 / (inputs as f32).sqrt();
            let a: Vec<f32> = (0..config.rank * inputs).map(|_| random.random_range(-bound..bound)).collect();
            let a = Tensor::from_data(TensorData::new(a, [config.rank, inputs]), (&device, DType::F32));
            let b = Tensor::zeros([out, config.rank], (&device, DType::F32));
            modules.insert(path, Module { a, b, scale: config.scale() });
        }
        let targets =
            if M::READS_ALL_LINEARS { config.targets.clone() } else { config.targets.spelled_out(modules.keys()) };
        let said = LoraConfig { targets, ..config.clone() };
        Ok(Self { modules, config: peft::config_of(&said, M::TASK), dropout: config.dropout, base: None })
    }

    /// Reads an adapter folder, of PEFT or of mlx-lm.
    ///
    /// # Errors
    /// If files are missing, malformed or links out of the folder, or the config asks for something that is not implemented, which is named.
    pub fn load(folder: &Path, device: &B::Device) -> Result<Self> {
        if let Some(weights) = resolve(folder, peft::WEIGHTS)? {
            peft::load(folder, &weights, device)
        } else if let Some(weights) = resolve(folder, mlx::WEIGHTS)? {
            mlx::load(folder, &weights, device)
        } else if folder.join(peft::PICKLE).exists() {
            Err(Error::Pickle { path: folder.join(peft::PICKLE) })
        } else {
            let problem = format!("holds neither {} (PEFT) nor {} (mlx-lm)", peft::WEIGHTS, mlx::WEIGHTS);
            Err(Error::Adapter { path: folder.into(), problem })
        }
    }

    /// Writes an adapter folder. Files appear whole or not at all, and a folder that was not there before does so too.
    ///
    /// # Errors
    /// If a file cannot be written, a matrix holds a value that is not finite, or mlx's format cannot say what this adapter is.
    pub fn save(&self, folder: &Path, format: Format) -> Result<()> {
        let is_new = !folder.exists();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let saved = self.write(&System, folder, format);
        if saved.is_err() && is_new {
            // What made the saving fail is being reported already; a second error has nowhere to go.
            drop(std::fs::remove_dir_all(folder));
        }
        saved
    }

    /// Writes the files of an adapter into a folder that is there.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn write(&self, disk: &dyn Disk, folder: &Path, format: Format) -> Result<()> {
        match format {
            Format::Peft => peft::write(self, disk, folder),
            Format::Mlx => mlx::write(self, disk, folder),
        }
    }

    /// A handle to `model` with this adapter attached; both share the base's storage.
    ///
    /// # Errors
    /// If a module is not in the model or has another shape, or the adapter's config names one that its file lacks.
    pub fn attach<M: Handle<B> + ?Sized>(&self, model: &M) -> Result<Box<M>> {
        self.check(model)?;
        let mut handle = model.handle();
        handle.each_linear(&mut |path, linear| {
            linear.lora = self.modules.get(path).map(|module| Lora {
                a: module.a.clone(),
                b: module.b.clone(),
                scale: module.scale,
                dropout: None,
            });
        });
        Ok(handle)
    }

    /// A handle to `model` with this adapter folded into its weights, in their dtype.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn merge<M: Handle<B> + ?Sized>(&self, model: &M) -> Result<Box<M>> {
        self.check(model)?;
        let mut handle = model.handle();
        handle.each_linear(&mut |path, linear| {
            if let Some(module) = self.modules.get(path) {
                linear.weight = arranged(module.merged(linear.weight.clone()));
            }
        });
        Ok(handle)
    }

    /// The modules by checkpoint path.
    pub fn modules(&self) -> &BTreeMap<String, Module<B>> {
        &self.modules
    }

    /// The same adapter with other matrices, as training produces them.
    ///
    /// # Panics
    /// If the modules are not the same.
    pub fn with_matrices(&self, matrices: impl IntoIterator<Item = (String, Tensor<B, 2>, Tensor<B, 2>)>) -> Self {
        let mut next = self.clone();
        let mut replaced = 0;
        for (path, a, b) in matrices {
            let module = next.modules.get_mut(&path).unwrap_or_else(|| panic!("the adapter has no module {path}"));
            assert_eq!((module.a.dims(), module.b.dims()), (a.dims(), b.dims()), "{path}");
            (module.a, module.b) = (a, b);
            replaced += 1;
        }
        assert_eq!(replaced, next.modules.len(), "every module is replaced");
        next
    }

    /// Dropout before `A` in training.
    pub fn dropout(&self) -> f64 {
        self.dropout
    }

    /// PEFT's description of the adapter.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Numbers in all matrices.
    pub fn parameters(&self) -> usize {
        self.modules
            .values()
            .map(|module| module.a.dims().iter().product::<usize>() + module.b.dims().iter().product::<usize>())
            .sum()
    }

    /// Fingerprint of the base it was made for.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Refuses the base with this fingerprint if the adapter knows that it was made for another.
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`], with both.
    pub fn check_base(&self, fingerprint: &str, name: &str) -> Result<()> {
        match self.base() {
            Some(base) if base != fingerprint => {
                let shorten = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
                let (made_for, this) = (shorten(base), shorten(fingerprint));
                let problem = format!("it was made for the base {made_for}…, this one is {this}… ({name})");
                Err(Error::AdapterMismatch { adapter: "(by its fingerprint)".into(), problems: vec![problem] })
            }
            _ => Ok(()),
        }
    }

    /// Notes the base: its fingerprint, and the name and revision PEFT shows and loads it by.
    pub fn set_base(&mut self, fingerprint: impl Into<String>, name: &str, revision: Option<&str>) {
        self.base = Some(fingerprint.into());
        self.config.insert("base_model_name_or_path".into(), name.into());
        self.config.insert("revision".into(), revision.into());
    }

    /// Everything about the model that does not fit, at once.
    fn check<M: Handle<B> + ?Sized>(&self, model: &M) -> Result<()> {
        let shapes: BTreeMap<String, [usize; 2]> = linear_shapes(model).into_iter().collect();
        let mut problems = Vec::new();
        for (path, module) in &self.modules {
            let (a, b) = (module.a.dims(), module.b.dims());
            match shapes.get(path) {
                None if M::UNREAD_LINEARS.contains(&path.as_str()) => {}
                None => problems.push(format!("{path} is not a linear of the model")),
                Some([out, inputs]) if [a[1], b[0]] != [*inputs, *out] => {
                    problems
                        .push(format!("{path} is [{out}, {inputs}] in the model, [{}, {}] in the adapter", b[0], a[1]));
                }
                Some(_) => {}
            }
        }
        let available: Vec<(String, [usize; 2])> = shapes.into_iter().collect();
        for path in peft::expected_modules(&self.config, &available)? {
            if !self.modules.contains_key(&path) {
                problems.push(format!("{path} is targeted by the adapter's config but not in its file"));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let name = self.config.get("base_model_name_or_path").and_then(Value::as_str);
        let adapter = name.map_or("(unnamed)".to_owned(), |name| format!("for base {name}"));
        Err(Error::AdapterMismatch { adapter, problems })
    }
}

impl<B: KernelBackend> Module<B> {
    /// `W + scale·B·A`, computed in f32 (f64 for an f64 weight) and given back in the weight's dtype; of a packed weight in f32, since packing
    /// it anew would change more than the adapter does.
    pub fn merged(&self, weight: Tensor<B, 2>) -> Tensor<B, 2> {
        let weight = unpacked(weight);
        let dtype = weight.dtype();
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let in_wide = |t: Tensor<B, 2>| if t.dtype() == wide { t } else { Tensor::<B, 2>::cast(t, wide) };
        // `linear` multiplies by the transpose: B·(Aᵀ)ᵀ.
        let update = linear(in_wide(self.b.clone()), in_wide(self.a.clone()).transpose(), None) * self.scale;
        let merged = in_wide(weight) + update;
        if dtype == wide { merged } else { Tensor::<B, 2>::cast(merged, dtype) }
    }
}

/// Path and shape of every linear that can be adapted, in the checkpoint's order.
pub fn linear_shapes<B: KernelBackend, M: Handle<B> + ?Sized>(model: &M) -> Vec<(String, [usize; 2])> {
    let mut shapes = Vec::new();
    // A handle of its own: visiting needs `&mut`, and cloning one copies no weight.
    model
        .handle()
        .each_linear(&mut |path: &str, linear: &mut Linear<B>| shapes.push((path.to_owned(), linear.shape())));
    shapes
}

/// The dtype of the first linear's weight, which is that of the layers; nothing where there are none.
pub fn linear_dtype<B: KernelBackend, M: Handle<B> + ?Sized>(model: &M) -> Option<DType> {
    let mut found = None;
    model.handle().each_linear(&mut |_: &str, linear: &mut Linear<B>| {
        found.get_or_insert(value_dtype(linear.weight.dtype()));
    });
    found
}

/// A matrix of an adapter file, or of a file beside it, as an f32 tensor.
pub(crate) fn matrix<B: KernelBackend>(file: &TensorFile, name: &str, device: &B::Device) -> Result<Tensor<B, 2>> {
    let data = file.data(name)?;
    let shape = data.shape.to_vec();
    if shape.len() != 2 || !data.dtype.is_float() {
        let problem = format!("tensor `{name}` is {:?} {shape:?}, not a matrix of floats", data.dtype);
        return Err(Error::malformed(file.path(), problem));
    }
    let data = data.convert_dtype(DType::F32);
    if data.iter::<f32>().any(|value| !value.is_finite()) {
        return Err(Error::malformed(file.path(), format!("tensor `{name}` holds values that are not finite")));
    }
    Ok(Tensor::from_data(data, (device, DType::F32)))
}

/// Writes named matrices as one safetensors file.
pub(crate) fn write_matrices<B: KernelBackend>(
    disk: &dyn Disk,
    path: &Path,
    matrices: BTreeMap<String, Tensor<B, 2>>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let specification = |(name, tensor): (&String, &Tensor<B, 2>)| TensorSpecification {
        name: name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.dims().to_vec(),
    };
    let specifications: Vec<_> = matrices.iter().map(specification).collect();
    write_safetensors(disk, path, &specifications, metadata, |tensor| {
        let data = matrices[&tensor.name].to_data();
        if data.iter::<f32>().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite { what: "a value to save", place: Some(tensor.name.clone()) });
        }
        Ok(data)
    })
}

/// A JSON object from a small file of a folder.
fn read_object(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    const LIMIT: u64 = 1 << 20;
    let bytes = need(folder, name, LIMIT)?;
    serde_json::from_slice(&bytes)
        .map_err(|problem| Error::malformed(folder.join(name), format!("not a JSON object: {problem}")))
}

/// A JSON object as Python writes it: sorted keys, two spaces.
fn write_object(disk: &dyn Disk, path: &Path, object: &Map<String, Value>) -> Result<()> {
    let mut sorted = object.clone();
    sorted.sort_keys();
    let text = serde_json::to_string_pretty(&sorted).map_err(|problem| Error::malformed(path, problem.to_string()))?;
    write_atomic(disk, path, text.as_bytes())
}
