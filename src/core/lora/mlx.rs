//! Adapter folders of mlx-lm. Its matrices are the transposes of PEFT's, its scale is `alpha / rank`, and all linears have one rank and one
//! scale: an adapter that is not of that form cannot be said in it.
//!
//! Source: mlx-lm's `tuner/utils.py` (`linear_to_lora_layers`, `load_adapters`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use firebrick_backend::KernelBackend;
use serde_json::{Map, Value, json};

use super::{Adapter, LoraConfig, Module, Targets, matrix, peft, read_object, write_matrices, write_object};
use crate::checkpoint::{Limits, TensorFile};
use crate::disk::Disk;
use crate::error::{Error, Result};

pub(super) const WEIGHTS: &str = "adapters.safetensors";
/// Our key in mlx's config: PEFT's config, so that converting there and back loses nothing. mlx-lm ignores keys it does not know.
const PEFT: &str = "peft";
/// Our key in mlx's config: the fingerprint of the base.
const BASE: &str = "firebrick_base";

pub(super) fn load<B: KernelBackend>(folder: &Path, weights: &Path, device: &B::Device) -> Result<Adapter<B>> {
    let path = folder.join(peft::CONFIG);
    let config = read_object(folder, peft::CONFIG)?;
    let broken = |problem: String| Error::Adapter { path: path.clone(), problem };
    match config.get("fine_tune_type") {
        None => {}
        Some(Value::String(kind)) if kind == "lora" => {}
        Some(value) => return Err(broken(format!("`fine_tune_type` = {value} is not supported; lora is"))),
    }
    let parameters = config.get("lora_parameters").and_then(Value::as_object);
    let parameters = parameters.ok_or_else(|| broken("`lora_parameters` is missing".into()))?;
    let number = |key: &str| {
        let value = parameters.get(key).and_then(Value::as_f64);
        value.ok_or_else(|| broken(format!("`lora_parameters.{key}` is not a number")))
    };
    let scale = number("scale")?;
    let dropout =
        if parameters.get("dropout").is_some_and(|dropout| !dropout.is_null()) { number("dropout")? } else { 0.0 };
    if !(0.0..1.0).contains(&dropout) {
        return Err(broken(format!("`lora_parameters.dropout` = {dropout} is not from 0 to below 1")));
    }

    let path = weights.to_owned();
    let file = TensorFile::open(&path, &Limits::ADAPTER)?;
    let mut modules: BTreeMap<String, Module<B>> = BTreeMap::new();
    for name in file.names() {
        let Some(module) = name.strip_suffix(".lora_a") else {
            if name.strip_suffix(".lora_b").is_some_and(|module| file.info(&format!("{module}.lora_a")).is_some()) {
                continue;
            }
            return Err(Error::Adapter { path, problem: format!("tensor `{name}` is not supported") });
        };
        let other = format!("{module}.lora_b");
        if file.info(&other).is_none() {
            return Err(Error::Adapter { path, problem: format!("`{other}` is missing") });
        }
        let a = matrix::<B>(&file, name, device)?.transpose();
        let b = matrix::<B>(&file, &other, device)?.transpose();
        if a.dims()[0] != b.dims()[1] {
            let problem = format!("{module}: lora_a and lora_b have different ranks");
            return Err(Error::Adapter { path, problem });
        }
        modules.insert(module.to_owned(), Module { a, b, scale });
    }
    let Some(first) = modules.values().next() else {
        return Err(Error::Adapter { path, problem: "holds no matrices".into() });
    };
    let config = match config.get(PEFT) {
        Some(Value::Object(peft)) => peft.clone(),
        _ => described(&modules, first.a.dims()[0], scale, dropout),
    };
    let base = file.metadata().get(BASE).cloned();
    Ok(Adapter { modules, config, dropout, base })
}

/// PEFT's config for an mlx adapter: its linears by name, in the layers it has.
fn described<B: KernelBackend>(
    modules: &BTreeMap<String, Module<B>>,
    rank: usize,
    scale: f64,
    dropout: f64,
) -> Map<String, Value> {
    let names: BTreeSet<String> = modules.keys().map(|path| in_layer(path).1.to_owned()).collect();
    let layers: BTreeSet<usize> = modules.keys().filter_map(|path| in_layer(path).0).collect();
    let targets = Targets::Names(names.into_iter().collect());
    let config = LoraConfig { rank, alpha: scale * rank as f64, dropout, targets, rslora: false };
    let mut config = peft::config_of(&config, "CAUSAL_LM");
    config.insert("layers_to_transform".into(), json!(layers));
    config
}

/// Layer and name within it: `model.layers.3.self_attn.q_proj` → `(3, self_attn.q_proj)`.
fn in_layer(path: &str) -> (Option<usize>, &str) {
    let mut rest = path;
    while let Some((part, after)) = rest.split_once('.') {
        if let Ok(layer) = part.parse() {
            return (Some(layer), after);
        }
        rest = after;
    }
    (None, path)
}

/// `keys` and `num_layers`. mlx-lm counts layers from the last and looks for keys in each of them, so an adapter of all layers alike is said by
/// names within a layer, the form that every reader knows. It looks for keys in the whole model too: any other adapter is said by full paths.
fn keys<B: KernelBackend>(adapter: &Adapter<B>) -> (BTreeSet<String>, usize) {
    let mut by_layer: BTreeMap<Option<usize>, BTreeSet<String>> = BTreeMap::new();
    for path in adapter.modules.keys() {
        let (layer, name) = in_layer(path);
        by_layer.entry(layer).or_default().insert(name.to_owned());
    }
    let layers = by_layer.len();
    let alike = (0..layers).all(|layer| by_layer.get(&Some(layer)) == by_layer.values().next());
    // The adapter alone does not show how many layers the model has; that none was chosen, its config does.
    let chosen = |text: &str| text.contains(|c: char| c.is_ascii_digit());
    let all_layers = match adapter.config.get("target_modules") {
        Some(Value::Array(names)) => !names.iter().filter_map(Value::as_str).any(chosen),
        Some(Value::String(pattern)) => !chosen(pattern),
        _ => false,
    };
    let filtered = adapter.config.get("layers_to_transform").is_some_and(|value| !value.is_null());
    if alike && all_layers && !filtered {
        return (by_layer.into_values().next().unwrap_or_default(), layers);
    }
    (adapter.modules.keys().cloned().collect(), layers)
}

pub(super) fn write<B: KernelBackend>(adapter: &Adapter<B>, disk: &dyn Disk, folder: &Path) -> Result<()> {
    let broken = |problem: &str| Error::Adapter {
        path: folder.into(),
        problem: format!("mlx-lm's format cannot say that {problem}; save it for PEFT"),
    };
    let first = adapter.modules.values().next().ok_or_else(|| broken("there are no matrices"))?;
    let (rank, scale) = (first.a.dims()[0], first.scale);
    if adapter.modules.values().any(|module| module.a.dims()[0] != rank || module.scale != scale) {
        return Err(broken("modules differ in rank or scale"));
    }
    let (keys, layers) = keys(adapter);
    let mut matrices = BTreeMap::new();
    for (path, module) in &adapter.modules {
        matrices.insert(format!("{path}.lora_a"), module.a.clone().transpose());
        matrices.insert(format!("{path}.lora_b"), module.b.clone().transpose());
    }
    let mut metadata = vec![("format", "mlx")];
    if let Some(base) = &adapter.base {
        metadata.insert(0, (BASE, base));
    }
    write_matrices(disk, &folder.join(WEIGHTS), matrices, &metadata)?;
    let config = json!({
        "fine_tune_type": "lora",
        "lora_parameters": { "dropout": adapter.dropout, "keys": keys, "rank": rank, "scale": scale },
        "num_layers": layers,
        PEFT: adapter.config,
    });
    write_object(disk, &folder.join(peft::CONFIG), &config.as_object().cloned().unwrap_or_default())
}
