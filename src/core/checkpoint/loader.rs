//! Tensors of a checkpoint asked for one by one, with everything that does not fit collected into one error. Which names a
//! model asks for is written in `models/`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorMetadata, TensorPrimitive};
use firebrick_backend::KernelBackend;
use firebrick_backend::ops::linear::arranged;
use firebrick_backend::packed::{BLOCK, CannotPack, Format, Packed, dtype_name};

use super::elements::is_float;
use super::header::describe;
use super::packed::names_of;
use super::{Checkpoint, TensorFile, elements, synthetic};
use crate::error::{Error, Result};

/// The dtype in which matrices are loaded. Norms and biases are always asked for as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DTypePolicy {
    /// As the file has them where the device multiplies by that dtype; else in f16 where it does so and every value fits, else in f32.
    #[default]
    Auto,
    /// Converted to F64, F32, F16 or BF16; a finite value that does not fit is an error.
    Convert(DType),
    /// Packed in blocks, where the rows are made of whole ones; tables of tokens in eight bits at least.
    Pack(Format),
}

/// Loads the tensors of a checkpoint strictly: what was asked for and is not there or has another shape, and what is there
/// and was not asked for, is all told by one error from [`TensorLoader::finish`]. Until then a tensor that cannot be had is
/// stood in for by a single zero, so that a model's constructor runs to its end. A model built on a loader that did not
/// finish with `Ok` must be dropped.
#[derive(Debug)]
pub struct TensorLoader<'a, B: KernelBackend> {
    checkpoint: &'a Checkpoint,
    device: B::Device,
    policy: DTypePolicy,
    asked: BTreeSet<String>,
    ignored: Vec<String>,
    missing: BTreeSet<String>,
    misshapen: BTreeSet<(String, String, String)>,
    /// The first error that is not a mismatch. After it nothing is read any more.
    failure: Option<Error>,
    warnings: Vec<String>,
    conversions: BTreeMap<(String, String), usize>,
    packings: BTreeMap<String, Format>,
}

impl<'a, B: KernelBackend> TensorLoader<'a, B> {
    pub(super) fn new(checkpoint: &'a Checkpoint, device: &B::Device, policy: DTypePolicy) -> Self {
        if let DTypePolicy::Convert(dtype) = policy {
            assert!(is_float(dtype), "weights are loaded as F64, F32, F16 or BF16, not {dtype:?}");
        }
        // A dtype that a device lacks would be computed with all the same, and wrongly.
        let lacks = match policy {
            DTypePolicy::Convert(DType::F64) if !B::has_f64() => Some(DType::F64),
            DTypePolicy::Convert(dtype) if !B::supports_dtype(device, dtype) => Some(dtype),
            DTypePolicy::Pack(format) if !B::reads_weights(device, format.dtype(BLOCK)) => Some(format.dtype(BLOCK)),
            _ => None,
        };
        let failure = lacks.map(|dtype| Error::DTypeOfDevice { dtype: dtype_name(dtype), device: B::name(device) });
        Self {
            checkpoint,
            device: device.clone(),
            policy,
            asked: BTreeSet::new(),
            ignored: Vec::new(),
            missing: BTreeSet::new(),
            misshapen: BTreeSet::new(),
            failure,
            warnings: Vec::new(),
            conversions: BTreeMap::new(),
            packings: BTreeMap::new(),
        }
    }

    /// The checkpoint that is loaded.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The device that the tensors are made on.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// The weight of a linear layer, `[out, in]`, in the dtype of the policy, packed if it is stored so or the policy says so, and
    /// [arranged](firebrick_backend::ops::linear::arranged) for the device.
    pub fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        let format = match self.policy {
            DTypePolicy::Pack(format) => Some(format),
            _ => None,
        };
        arranged(self.matrix_in(name, shape, format))
    }

    /// A table with a row for each token, as [`matrix`](Self::matrix), but packed in no less than eight bits: rare tokens share no row.
    pub fn table(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        let format = matches!(self.policy, DTypePolicy::Pack(_)).then_some(Format::Q8);
        self.matrix_in(name, shape, format)
    }

    fn matrix_in(&mut self, name: &str, shape: [usize; 2], format: Option<Format>) -> Tensor<B, 2> {
        let stored_packed = self.checkpoint.is_packed(name);
        let format = format.filter(|format| format.block(shape[1]).is_some());
        if !stored_packed && format.is_none() {
            return self.tensor(name, shape);
        }
        match self.packed(name, shape, format, stored_packed) {
            Some(primitive) => Tensor::from_primitive(TensorPrimitive::Float(primitive)),
            None => Tensor::zeros([1, 1], &self.device),
        }
    }

    /// A matrix that is packed in the file or is to be, or nothing with the reason written down.
    fn packed(
        &mut self,
        name: &str,
        shape: [usize; 2],
        format: Option<Format>,
        stored_packed: bool,
    ) -> Option<FloatTensor<B>> {
        let (matrix, stored) = if stored_packed {
            self.asked.extend(names_of(name).into_iter().flatten());
            if self.failure.is_some() {
                return None;
            }
            let matrix = self.noted(self.checkpoint.packed(name, shape))?;
            let stored = matrix.format.dtype(matrix.block);
            match format.filter(|format| *format != matrix.format) {
                // From one width to another through the values.
                Some(format) => (self.pack(name, format, shape, &matrix.unpacked())?, stored),
                None => (matrix, stored),
            }
        } else {
            let stored = self.checkpoint.info(name).map_or(DType::F32, |info| info.dtype);
            let values = self.read(name, &shape, Some(DType::F32))?.into_vec::<f32>().unwrap_or_default();
            let matrix = self.pack(name, format?, shape, &values)?;
            self.packings.insert(name.to_owned(), matrix.format);
            (matrix, stored)
        };
        let dtype = matrix.format.dtype(matrix.block);
        let tensor = match self.policy {
            DTypePolicy::Convert(dtype) => self.dense(TensorData::new(matrix.unpacked(), shape).convert_dtype(dtype)),
            _ if B::reads_weights(&self.device, dtype) => B::packed(matrix, &self.device),
            _ => {
                // The device has no kernel for the blocks: their values, narrow where it multiplies by those.
                let narrow = B::reads_weights(&self.device, DType::F16);
                let values = TensorData::new(matrix.unpacked(), shape);
                self.dense(if narrow { values.convert_dtype(DType::F16) } else { values })
            }
        };
        self.note_conversion(stored, tensor.dtype());
        Some(tensor)
    }

    fn note_conversion(&mut self, from: DType, to: DType) {
        if from != to {
            *self.conversions.entry((dtype_name(from).into(), dtype_name(to).into())).or_default() += 1;
        }
    }

    fn dense(&self, data: TensorData) -> FloatTensor<B> {
        B::float_from_data(data, &self.device)
    }

    fn pack(&mut self, name: &str, format: Format, shape: [usize; 2], values: &[f32]) -> Option<Packed> {
        let folder = self.checkpoint.folder();
        let refused = |problem: CannotPack| Error::malformed(folder, format!("tensor `{name}`: {problem}"));
        self.noted(Packed::pack(format, shape, values).map_err(refused))
    }

    /// The value, or nothing with the error kept.
    fn noted<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failure = Some(error)).ok()
    }

    /// The tensor `name` in the dtype of the policy, never packed.
    pub fn tensor<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let wanted = match self.policy {
            DTypePolicy::Auto | DTypePolicy::Pack(_) => self.wanted_by_the_device(name),
            DTypePolicy::Convert(dtype) => Some(dtype),
        };
        let stored = self.checkpoint.info(name).map(|info| info.dtype);
        let tensor = self.load(name, shape, wanted);
        if let Some(stored) = stored.filter(|_| self.failure.is_none()) {
            self.note_conversion(stored, tensor.dtype());
        }
        tensor
    }

    /// The dtype to convert a matrix to, if the device does not multiply by the one it is stored in.
    fn wanted_by_the_device(&self, name: &str) -> Option<DType> {
        let stored = self.checkpoint.info(name)?.dtype;
        if !is_float(stored) || B::reads_weights(&self.device, stored) {
            return None;
        }
        let narrow = stored.size() == 2 && B::reads_weights(&self.device, DType::F16);
        Some(if narrow { DType::F16 } else { DType::F32 })
    }

    /// The tensor `name` as f32, or as f64 where everything is: for norms and biases, which are small and need the precision.
    pub fn precise<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let double = self.policy == DTypePolicy::Convert(DType::F64);
        self.load(name, shape, Some(if double { DType::F64 } else { DType::F32 }))
    }

    /// [`TensorLoader::tensor`] if the checkpoint has it: an absent tensor is `None` and no error.
    pub fn optional<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Option<Tensor<B, D>> {
        self.contains(name).then(|| self.tensor(name, shape))
    }

    /// [`TensorLoader::precise`] if the checkpoint has it.
    pub fn optional_precise<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Option<Tensor<B, D>> {
        self.contains(name).then(|| self.precise(name, shape))
    }

    /// Whether the checkpoint has a tensor `name`; a synthetic one has any.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.synthetic.is_some() || self.checkpoint.places.contains_key(name)
    }

    /// Does not count `name` as surplus, nor any tensor whose path ends with it: `rotary_emb.inv_freq` covers that of every
    /// layer. For what is known to be harmless, such as the `lm_head.weight` of a model with a tied head.
    pub fn ignore(&mut self, name: &str) {
        self.ignored.push(name.to_owned());
    }

    /// The names of the tensors loaded so far that hold infinite values or NaN, in the order of loading.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Ends the loading.
    ///
    /// # Errors
    /// The first file or value that could not be read, or one [`Error::TensorMismatch`] with everything missing, surplus and
    /// misshapen, sorted.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let surplus: Vec<String> =
            self.checkpoint.names().filter(|name| self.is_surplus(name)).map(Into::into).collect();
        if self.missing.is_empty() && surplus.is_empty() && self.misshapen.is_empty() {
            let mut noted = self.checkpoint.non_finite.lock().unwrap_or_else(PoisonError::into_inner);
            noted.extend(self.warnings.iter().cloned());
            noted.sort();
            noted.dedup();
            let mut conversions = self.checkpoint.conversions.lock().unwrap_or_else(PoisonError::into_inner);
            conversions.clone_from(&self.conversions);
            let mut packings = self.checkpoint.packings.lock().unwrap_or_else(PoisonError::into_inner);
            packings.clone_from(&self.packings);
            return Ok(());
        }
        Err(Error::TensorMismatch {
            path: self.checkpoint.folder().into(),
            missing: self.missing.iter().cloned().collect(),
            surplus,
            misshapen: self.misshapen.iter().cloned().collect(),
        })
    }

    fn is_surplus(&self, name: &str) -> bool {
        let ends = |ignored: &String| {
            name.strip_suffix(ignored.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        !self.asked.contains(name) && !self.ignored.iter().any(ends)
    }

    fn load<const D: usize>(&mut self, name: &str, shape: [usize; D], wanted: Option<DType>) -> Tensor<B, D> {
        let data = self.read(name, &shape, wanted).unwrap_or_else(|| TensorData::new(vec![0f32], [1; D]));
        // `Tensor::from_data` would convert to the backend's default float; the primitive keeps the dtype it is given.
        Tensor::from_primitive(TensorPrimitive::Float(B::float_from_data(data, &self.device)))
    }

    /// The tensor's data, or nothing with the reason written down.
    fn read(&mut self, name: &str, shape: &[usize], wanted: Option<DType>) -> Option<TensorData> {
        if let Some(seed) = self.checkpoint.synthetic {
            return Some(synthetic::tensor(seed, name, shape, wanted));
        }
        self.asked.insert(name.to_owned());
        let Some(info) = self.checkpoint.info(name) else {
            self.missing.insert(name.to_owned());
            return None;
        };
        if info.shape != shape || !is_float(info.dtype) {
            let expected = match wanted {
                Some(dtype) => describe(dtype, shape),
                None if is_float(info.dtype) => describe(info.dtype, shape),
                None => format!("a float {shape:?}"),
            };
            self.misshapen.insert((name.to_owned(), expected, describe(info.dtype, &info.shape)));
            return None;
        }
        if self.failure.is_some() {
            return None;
        }
        let copy = |file: &TensorFile| {
            // The device's wish and not the user's: what does not fit stays wide.
            let device_chose = !matches!(self.policy, DTypePolicy::Convert(_));
            if device_chose && wanted == Some(DType::F16) && info.dtype != DType::F16 {
                let elements = file.convert(name, wanted)?;
                return if elements.overflowed == 0 { Ok(elements) } else { file.copy(name, Some(DType::F32)) };
            }
            file.copy(name, wanted)
        };
        match self.checkpoint.file_of(name).and_then(copy) {
            Ok(elements::Elements { data, non_finite, .. }) => {
                if non_finite > 0 && !self.warnings.iter().any(|warned| warned == name) {
                    self.warnings.push(name.to_owned());
                }
                Some(data)
            }
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
    }
}
