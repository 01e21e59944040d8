//! Adapter folders of Hugging Face PEFT: what is read, what is refused by name, what is written.
//!
//! Source: PEFT's `LoraConfig`, `save_pretrained` and `get_pattern_key`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use firebrick_backend::KernelBackend;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::targets::compiled;
use super::{Adapter, LoraConfig, Module, Targets, matrix, read_object, scale, write_matrices, write_object};
use crate::checkpoint::{Limits, TensorFile};
use crate::disk::Disk;
use crate::error::{Error, Result};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
/// The weights as PEFT wrote them before safetensors: a pickle.
pub(super) const PICKLE: &str = "adapter_model.bin";
/// Metadata key of our files: the fingerprint of the base.
const BASE: &str = "firebrick_base";
const PREFIX: &str = "base_model.model.";
/// Patterns of a config at most: one for each linear of a large model, and room.
const MAX_PATTERNS: usize = 2_000;

/// Keys that are honoured.
const HONOURED: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "init_lora_weights",
];
/// Keys that say nothing about the mathematics of a saved adapter.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// The config of a new adapter for a model of this `task`, with every key PEFT writes.
pub(super) fn config_of(config: &LoraConfig, task: &str) -> Map<String, Value> {
    let targets = match &config.targets {
        Targets::Names(names) => json!(names),
        Targets::Regex(pattern) => json!(pattern),
        Targets::AllLinear => json!("all-linear"),
    };
    // Whole numbers as PEFT writes them; its type for alpha is int, though it computes with floats.
    let alpha = if config.alpha.fract() == 0.0 { json!(config.alpha as i64) } else { json!(config.alpha) };
    let value = json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": null, "bias": "none",
        "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {},
        "lora_alpha": alpha, "lora_bias": false, "lora_dropout": config.dropout, "megatron_config": null,
        "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": config.rank,
        "rank_pattern": {}, "revision": null, "target_modules": targets, "task_type": task,
        "use_dora": false, "use_rslora": config.rslora,
    });
    value.as_object().cloned().unwrap_or_default()
}

pub(super) fn load<B: KernelBackend>(folder: &Path, weights: &Path, device: &B::Device) -> Result<Adapter<B>> {
    let config = read_object(folder, CONFIG)?;
    let facts = Facts::read(&config).map_err(|problem| Error::Adapter { path: folder.join(CONFIG), problem })?;
    let file = TensorFile::open(weights, &Limits::ADAPTER)?;
    let broken = |problem: String| Error::Adapter { path: weights.to_owned(), problem };

    let mut pairs: BTreeMap<String, [Option<&str>; 2]> = BTreeMap::new();
    for name in file.names() {
        let inner = name.strip_prefix(PREFIX).unwrap_or_default();
        let split = |end: &str| inner.strip_suffix(end).filter(|module| !module.is_empty());
        let (module, side) = match (split(".lora_A.weight"), split(".lora_B.weight")) {
            (Some(module), _) => (module, 0),
            (_, Some(module)) => (module, 1),
            _ => return Err(broken(format!("tensor `{name}` is not a LoRA matrix of a linear and is not supported"))),
        };
        pairs.entry(module.to_owned()).or_default()[side] = Some(name);
    }
    if pairs.is_empty() {
        return Err(broken("holds no matrices".into()));
    }
    let mut modules = BTreeMap::new();
    for (module, pair) in pairs {
        let [Some(a), Some(b)] = pair else {
            return Err(broken(format!("{module} has only one of lora_A and lora_B")));
        };
        let (a, b) = (matrix::<B>(&file, a, device)?, matrix::<B>(&file, b, device)?);
        let (rank, alpha) = facts.rank_and_alpha(&module).map_err(&broken)?;
        if a.dims()[0] != rank || b.dims()[1] != rank {
            let (a, b) = (a.dims(), b.dims());
            return Err(broken(format!("{module} has rank {rank} in the config, but lora_A {a:?} and lora_B {b:?}")));
        }
        modules.insert(module, Module { a, b, scale: scale(alpha, rank, facts.rslora) });
    }
    let base = file.metadata().get(BASE).cloned();
    Ok(Adapter { modules, dropout: facts.dropout, config, base })
}

pub(super) fn write<B: KernelBackend>(adapter: &Adapter<B>, disk: &dyn Disk, folder: &Path) -> Result<()> {
    let mut matrices = BTreeMap::new();
    for (path, module) in &adapter.modules {
        matrices.insert(format!("{PREFIX}{path}.lora_A.weight"), module.a.clone());
        matrices.insert(format!("{PREFIX}{path}.lora_B.weight"), module.b.clone());
    }
    let mut metadata = vec![("format", "pt")];
    if let Some(base) = &adapter.base {
        metadata.insert(0, (BASE, base));
    }
    write_matrices(disk, &folder.join(WEIGHTS), matrices, &metadata)?;
    write_object(disk, &folder.join(CONFIG), &adapter.config)
}

/// The modules a config targets among `(path, shape)`; PEFT would leave one that its file lacks untrained, with a warning.
pub(super) fn expected_modules(config: &Map<String, Value>, linears: &[(String, [usize; 2])]) -> Result<Vec<String>> {
    let broken = |problem: String| Error::Adapter { path: CONFIG.into(), problem };
    let facts = Facts::read(config).map_err(broken)?;
    let matches = facts.targets.matcher().map_err(|problem| broken(format!("target_modules: {problem}")))?;
    let in_layers = |path: &str| match &facts.layers {
        None => true,
        Some(layers) => path.split('.').find_map(|part| part.parse().ok()).is_some_and(|layer| layers.contains(&layer)),
    };
    let chosen = linears.iter().map(|(path, _)| path).filter(|path| matches(path) && in_layers(path));
    Ok(chosen.cloned().collect())
}

/// What a config says, once nothing in it is unsupported.
struct Facts {
    rank: usize,
    alpha: f64,
    dropout: f64,
    rslora: bool,
    targets: Targets,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    layers: Option<BTreeSet<usize>>,
}

impl Facts {
    fn read(config: &Map<String, Value>) -> std::result::Result<Self, String> {
        refuse_unsupported(config)?;
        let number = |key: &str, default: f64| match config.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| *number >= 0.0)
                .ok_or_else(|| format!("`{key}` = {value} is not a number")),
        };
        let rank = number("r", 8.0)?;
        if rank.fract() != 0.0 || !(1.0..=65_536.0).contains(&rank) {
            return Err(format!("`r` = {rank} is not a whole number from 1 to 65,536"));
        }
        let dropout = number("lora_dropout", 0.0)?;
        if dropout >= 1.0 {
            return Err(format!("`lora_dropout` = {dropout} is not from 0 to below 1"));
        }
        let names =
            |list: &[Value]| list.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        let targets = match config.get("target_modules") {
            Some(Value::String(text)) if text == "all-linear" => Targets::AllLinear,
            Some(Value::String(pattern)) => Targets::Regex(pattern.clone()),
            Some(Value::Array(list)) => {
                Targets::Names(names(list).ok_or("`target_modules` holds something that is not a name")?)
            }
            _ => return Err("`target_modules` is missing".into()),
        };
        Ok(Self {
            rank: rank as usize,
            alpha: number("lora_alpha", 8.0)?,
            dropout,
            rslora: match config.get("use_rslora") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(rslora)) => *rslora,
                Some(value) => return Err(format!("`use_rslora` = {value} is not true or false")),
            },
            targets,
            rank_pattern: patterns(config, "rank_pattern")?,
            alpha_pattern: patterns(config, "alpha_pattern")?,
            layers: layers(config)?,
        })
    }

    /// Rank and alpha of a module: the first pattern that matches the end of its path, or the default.
    fn rank_and_alpha(&self, module: &str) -> std::result::Result<(usize, f64), String> {
        let find =
            |patterns: &[(Regex, f64)]| patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, v)| *v);
        let rank = find(&self.rank_pattern).unwrap_or(self.rank as f64);
        if rank.fract() != 0.0 || rank < 1.0 {
            return Err(format!("`rank_pattern` gives {module} the rank {rank}"));
        }
        Ok((rank as usize, find(&self.alpha_pattern).unwrap_or(self.alpha)))
    }
}

fn refuse_unsupported(config: &Map<String, Value>) -> std::result::Result<(), String> {
    match config.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        _ => {
            return Err(format!(
                "`peft_type` = {} is not supported; LORA is",
                config.get("peft_type").unwrap_or(&Value::Null)
            ));
        }
    }
    // PiSSA, OLoRA and their kin change the base as well, which a saved adapter does not show.
    match config.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(Value::String(kind)) if ["gaussian", "eva", "orthogonal"].contains(&kind.as_str()) => {}
        Some(value) => {
            return Err(format!("`init_lora_weights` = {value} changes the base model and is not supported"));
        }
    }
    for (key, value) in config {
        let neutral = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => key == "bias" && text == "none",
            _ => false,
        };
        if !neutral && !HONOURED.contains(&key.as_str()) && !HARMLESS.contains(&key.as_str()) {
            return Err(format!("`{key}` = {value} is not supported"));
        }
    }
    Ok(())
}

fn patterns(config: &Map<String, Value>, key: &str) -> std::result::Result<Vec<(Regex, f64)>, String> {
    let entries = match config.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(value) => return Err(format!("`{key}` = {value} is not an object")),
    };
    if entries.len() > MAX_PATTERNS {
        return Err(format!("`{key}` has {} patterns; {MAX_PATTERNS} are allowed", entries.len()));
    }
    let entry = |(pattern, value): (&String, &Value)| {
        // As PEFT's `get_pattern_key`: the pattern, alone or behind a dot, up to the end of the path.
        let regex = compiled(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|problem| format!("`{key}`: {problem}"))?;
        let value = value.as_f64().filter(|value| *value > 0.0);
        Ok((regex, value.ok_or_else(|| format!("`{key}`: the value of `{pattern}` is not a positive number"))?))
    };
    entries.iter().map(entry).collect()
}

fn layers(config: &Map<String, Value>) -> std::result::Result<Option<BTreeSet<usize>>, String> {
    let index = |value: &Value| value.as_u64().map(|index| index as usize);
    let layers: Option<BTreeSet<usize>> = match config.get("layers_to_transform") {
        None | Some(Value::Null) => return Ok(None),
        // As in PEFT, an empty list chooses nothing away.
        Some(Value::Array(list)) if list.is_empty() => return Ok(None),
        Some(Value::Array(list)) => list.iter().map(index).collect(),
        Some(value) => index(value).map(|index| BTreeSet::from([index])),
    };
    layers.map(Some).ok_or_else(|| "`layers_to_transform` is neither a layer nor a list of layers".into())
}
