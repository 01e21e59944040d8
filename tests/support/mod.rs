//! What the contract tests share: every built backend, every golden model, and how near is near enough.
#![allow(dead_code)] // Each test binary uses a part.

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use firebrick::KernelBackend;
use firebrick::core::cache::KvCache;
use firebrick::core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick::core::lora::{Adapter, LoraConfig};
use firebrick::core::model::{CausalLm, Handle};
use firebrick::core::sequence::{Segments, Sequences};
use firebrick::models::load_causal_lm;
use safetensors::SafeTensors;

/// The golden decoders, a model folder each.
pub const DECODERS: [&str; 3] = ["qwen2-tiny", "qwen2-tiny-untied", "qwen3-tiny"];

/// A test over every backend this build has.
#[macro_export]
macro_rules! contract {
    ($(#[$attribute:meta])* fn $name:ident<$B:ident>($device:ident) $body:block) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            struct Contract;
            impl firebrick::Job for Contract {
                type Output = ();
                fn run<$B: firebrick::TrainBackend>(self, $device: $B::Device) $body
            }
            let built = firebrick::built();
            assert!(!built.is_empty(), "no backend is built in");
            for backend in built {
                // A backend that finds no device fails here: it is not passed over. `.ci/run` makes a table of these lines.
                firebrick::dispatch(backend, Contract).unwrap();
                println!("contract {} on {backend}: passed", stringify!($name));
            }
        }
    };
}

/// The backend underneath autodiff.
pub type Inner<B> = <B as burn::tensor::backend::AutodiffBackend>::InnerBackend;

/// A folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A golden model: its folder and the tensors computed by transformers and PEFT.
pub struct Golden {
    pub folder: PathBuf,
    bytes: Vec<u8>,
    pub facts: serde_json::Value,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let folder = repository("tests/goldens").join(name);
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let facts = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        Self { folder, bytes, facts }
    }

    /// A folder that has a `golden.safetensors` and no `golden.json`.
    pub fn tensors(folder: &Path) -> Self {
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        Self { folder: folder.into(), bytes, facts: serde_json::Value::Null }
    }

    pub fn load<B: KernelBackend>(&self, device: &B::Device) -> Box<dyn CausalLm<B>> {
        load::<B>(&self.folder, device)
    }

    /// A tensor's numbers and shape.
    pub fn floats(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        (view.data().chunks_exact(4).map(number).collect(), view.shape().to_vec())
    }

    /// A tensor of token ids, labels or a mask, by row.
    pub fn integers(&self, name: &str) -> Vec<Vec<i64>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::I64);
        let values: Vec<i64> =
            view.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
        values.chunks(view.shape()[1]).map(<[i64]>::to_vec).collect()
    }

    /// A tensor of token ids or a mask, by row.
    pub fn rows(&self, name: &str) -> Vec<Vec<u32>> {
        self.integers(name).iter().map(|row| row.iter().map(|&id| id as u32).collect()).collect()
    }
}

/// Loads a decoder as it is stored.
pub fn load<B: KernelBackend>(folder: &Path, device: &B::Device) -> Box<dyn CausalLm<B>> {
    load_causal_lm::<B>(&Checkpoint::open(folder).unwrap(), DTypePolicy::Auto, device).unwrap()
}

/// Logits of every position of one sequence that passes through a cache, `chunk` tokens at a time.
pub fn cached_logits<B: KernelBackend>(model: &dyn CausalLm<B>, ids: &[u32], chunk: usize) -> Vec<f32> {
    logits_through(model, model.new_cache(1, 2), ids, chunk)
}

/// The same through this cache.
pub fn logits_through<B: KernelBackend>(
    model: &dyn CausalLm<B>,
    mut cache: KvCache<B>,
    ids: &[u32],
    chunk: usize,
) -> Vec<f32> {
    let step = |chunk: &[u32]| {
        let tokens = Sequences::new(chunk, Segments::continuing([(chunk.len(), cache.len(0))]), &model.device());
        floats(model.head(model.hidden(&tokens, Some(&mut cache))))
    };
    ids.chunks(chunk).flat_map(step).collect()
}

/// Logits of every position of whole sequences, laid end to end.
pub fn logits<B: KernelBackend>(model: &dyn CausalLm<B>, sequences: &[Vec<u32>]) -> Vec<f32> {
    let tokens = Sequences::whole(sequences, &model.device());
    floats(model.head(model.hidden(&tokens, None)))
}

pub fn floats<B: KernelBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// An adapter with a random `B`, since a zero one hides `A` and its gradient.
pub fn random_adapter<B: KernelBackend, M: Handle<B> + ?Sized>(
    model: &M,
    config: &LoraConfig,
    spread: f32,
) -> Adapter<B> {
    let adapter = Adapter::create(model, config, 1).unwrap();
    let mut state = 12345u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * spread
    };
    let modules: Vec<_> = adapter
        .modules()
        .iter()
        .map(|(path, module)| {
            let [out, rank] = module.b.dims();
            let b: Vec<f32> = (0..out * rank).map(|_| random()).collect();
            (path.clone(), module.a.clone(), Tensor::from_data(TensorData::new(b, [out, rank]), &model.place()))
        })
        .collect();
    adapter.with_matrices(modules)
}

/// Every pair is within `absolute + relative · |expected|`.
#[track_caller]
pub fn assert_near(actual: &[f32], expected: &[f32], absolute: f32, relative: f32, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths");
    for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= absolute + relative * e.abs(), "{what}: element {index} is {a}, expected {e}");
    }
}

/// The tolerance of `tests/goldens/index.json` for logits and hidden states.
#[track_caller]
pub fn assert_golden(actual: &[f32], expected: &[f32], what: &str) {
    assert_near(actual, expected, 2e-4, 1e-4, what);
}

/// A copy of a model folder whose tensors have other names.
pub fn renamed(folder: &Path, rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        let target = copy.path().join(at.strip_prefix(folder).unwrap());
        std::fs::create_dir_all(&target).unwrap();
        for entry in std::fs::read_dir(at).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
            }
        }
    }
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = tensors.tensors().into_iter().map(|(name, view)| (rename(&name), view));
    safetensors::serialize_to_file(tensors, None, &copy.path().join("model.safetensors")).unwrap();
    copy
}
