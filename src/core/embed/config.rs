//! How a checkpoint wants texts embedded, from the files that sentence-transformers writes beside the weights: `modules.json`, the
//! pooling's `config.json` in the form of version 6 and in the older one, `sentence_bert_config.json`, `tokenizer_config.json`, and the
//! prompts of `config_sentence_transformers.json`.
//!
//! Without `modules.json` it is the mean over the tokens, to unit length.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::Pooling;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::file::read_confined;

/// How texts become vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedConfig {
    /// Ways of pooling; the vectors of several are laid one after the other.
    pub pooling: Vec<Pooling>,
    /// Whether vectors are brought to unit length.
    pub normalize: bool,
    /// Tokens of a text at most, special ones included; what the file says, not yet held against the model's context.
    pub max_tokens: Option<usize>,
    /// Whether texts are lowercased before they are tokenized.
    pub lowercase: bool,
    /// What goes before a query.
    pub query_prefix: String,
    /// What goes before a passage.
    pub passage_prefix: String,
    /// Whether both are known from the model's name alone, since its files name none: E5's.
    pub by_name: bool,
}

impl Default for EmbedConfig {
    fn default() -> Self {
        Self {
            pooling: vec![Pooling::Mean],
            normalize: true,
            max_tokens: None,
            lowercase: false,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            by_name: false,
        }
    }
}

const FILE_LIMIT: u64 = 1 << 20;
const MODULES: &str = "modules.json";
/// The name depends on the architecture that the model was saved from.
const LENGTHS: [&str; 3] =
    ["sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json"];

impl EmbedConfig {
    /// Reads the files of a checkpoint's folder; each may be absent.
    ///
    /// # Errors
    /// If one is malformed or asks for a module or a pooling that is not implemented, which is named.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let folder = checkpoint.folder();
        let mut config = Self::default();
        if let Some((path, modules)) = value(folder, folder.join(MODULES))? {
            config.read_modules(folder, &path, &modules)?;
        }
        for name in LENGTHS {
            if let Some((path, file)) = object(folder, folder.join(name))? {
                config.max_tokens = length(&path, &file, "max_seq_length")?.or(config.max_tokens);
                config.lowercase |= flag(&path, &file, "do_lower_case")?;
            }
        }
        if config.max_tokens.is_none()
            && let Some((path, file)) = object(folder, folder.join("tokenizer_config.json"))?
        {
            config.max_tokens = length(&path, &file, "model_max_length")?;
        }
        let prompts = object(folder, folder.join("config_sentence_transformers.json"))?;
        config.read_prompts(prompts.as_ref().map(|(path, file)| (path.as_path(), file)))?;
        let says_nothing = config.query_prefix.is_empty() && config.passage_prefix.is_empty();
        config.by_name = says_nothing && is_e5(checkpoint);
        if config.by_name {
            config.query_prefix = "query: ".into();
            config.passage_prefix = "passage: ".into();
        }
        Ok(config)
    }

    /// The chain of modules: a transformer, poolings, and perhaps a normalisation. Types moved between packages over the versions of
    /// sentence-transformers, so that only the last part of their names counts.
    fn read_modules(&mut self, folder: &Path, path: &Path, modules: &Value) -> Result<()> {
        let Some(modules) = modules.as_array() else {
            return Err(Error::malformed(path, "it is not a list of modules"));
        };
        self.normalize = false;
        let mut pooled = false;
        for (index, module) in modules.iter().enumerate() {
            let Some(kind) = module["type"].as_str() else {
                return Err(Error::malformed(path, format!("module {index} has no `type`")));
            };
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if index == 0 => {}
                "Pooling" if index > 0 && !pooled => {
                    let inside = plain_folder(path, &module["path"])?;
                    self.pooling = read_pooling(folder, folder.join(inside).join("config.json"))?;
                    pooled = true;
                }
                "Normalize" if pooled => self.normalize = true,
                _ => {
                    return Err(Error::UnsupportedConfig {
                        path: path.into(),
                        key: format!("[{index}].type"),
                        value: module["type"].to_string(),
                        reason: "Transformer, Pooling and Normalize in this order are".into(),
                    });
                }
            }
        }
        if !pooled {
            return Err(Error::malformed(path, "there is no Pooling among the modules"));
        }
        Ok(())
    }

    /// The prompts called `query`, and `document`, `passage` or `corpus`, the first that there is; where there is none, the one that
    /// `default_prompt_name` names.
    fn read_prompts(&mut self, file: Option<(&Path, &Map<String, Value>)>) -> Result<()> {
        let Some((path, file)) = file else { return Ok(()) };
        let prompts = match file.get("prompts") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(prompts)) => prompts,
            Some(_) => return Err(Error::malformed(path, "`prompts` is not an object")),
        };
        let find = |name: &str| match prompts.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(prompt)) => Ok(Some(prompt.clone())),
            Some(other) => Err(Error::malformed(path, format!("the prompt `{name}` is {other}, not a text"))),
        };
        let default = match file.get("default_prompt_name").and_then(Value::as_str) {
            None => None,
            Some(name) => match find(name)? {
                None => return Err(Error::malformed(path, format!("there is no prompt `{name}`, the default"))),
                found => found,
            },
        };
        let first = |names: &[&str]| -> Result<String> {
            for name in names {
                if let Some(prompt) = find(name)? {
                    return Ok(prompt);
                }
            }
            Ok(default.clone().unwrap_or_default())
        };
        self.query_prefix = first(&["query"])?;
        self.passage_prefix = first(&["document", "passage", "corpus"])?;
        Ok(())
    }
}

/// The pooling's own config: `pooling_mode`, a name or a list of them, or in the older form a switch for each.
fn read_pooling(folder: &Path, path: PathBuf) -> Result<Vec<Pooling>> {
    let Some((path, file)) = object(folder, path.clone())? else {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "modules.json says it is there");
        return Err(Error::io(path)(missing));
    };
    let unsupported = |key: &str, value: &Value, reason: String| Error::UnsupportedConfig {
        path: path.clone(),
        key: key.to_owned(),
        value: value.to_string(),
        reason,
    };
    if let Some(value) = file.get("include_prompt").filter(|value| **value != Value::Bool(true) && !value.is_null()) {
        return Err(unsupported("include_prompt", value, "pooling over the prompt as well is".into()));
    }
    let names = || Pooling::ALL.map(Pooling::name).join(", ");
    let of = |value: &Value| {
        let found = Pooling::ALL.into_iter().find(|pooling| value.as_str() == Some(pooling.name()));
        found.ok_or_else(|| unsupported("pooling_mode", value, format!("{} are", names())))
    };
    let modes = match file.get("pooling_mode") {
        Some(Value::Array(list)) => list.iter().map(of).collect::<Result<_>>()?,
        Some(value) if !value.is_null() => vec![of(value)?],
        _ => {
            const SWITCHES: [(&str, Pooling); 6] = [
                ("pooling_mode_cls_token", Pooling::Cls),
                ("pooling_mode_max_tokens", Pooling::Max),
                ("pooling_mode_mean_tokens", Pooling::Mean),
                ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLength),
                ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
                ("pooling_mode_lasttoken", Pooling::LastToken),
            ];
            let unknown =
                |key: &&String| key.starts_with("pooling_mode_") && !SWITCHES.iter().any(|(known, _)| known == *key);
            if let Some(key) = file.keys().find(unknown) {
                return Err(unsupported(key, &file[key], format!("{} are", names())));
            }
            let mut modes = Vec::new();
            for (key, pooling) in SWITCHES {
                if flag(&path, &file, key)? {
                    modes.push(pooling);
                }
            }
            modes
        }
    };
    if modes.is_empty() {
        return Err(Error::malformed(path, format!("it switches no pooling on; {} are known", names())));
    }
    Ok(modes)
}

/// Whether the checkpoint is one of E5's, which were trained with prefixes that their files do not name: by `e5` as a word of the folder's
/// name, of the repo's where the folder is a snapshot in a Hugging Face cache, or of the config's `_name_or_path`. The instruct models want
/// a task in words instead.
fn is_e5(checkpoint: &Checkpoint) -> bool {
    let folder = checkpoint.folder();
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mut names: Vec<String> = Vec::new();
    names.extend(folder.file_name().map(|name| name.to_string_lossy().into_owned()));
    if let Some(snapshots) = folder.parent().filter(|parent| parent.ends_with("snapshots")) {
        names.extend(snapshots.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()));
    }
    names.extend(checkpoint.config()["_name_or_path"].as_str().map(str::to_owned));
    names.iter().any(|name| {
        let name = name.to_lowercase();
        let mut words = name.split(|c: char| !c.is_alphanumeric());
        words.any(|word| word == "e5") && !name.contains("instruct") && !name.contains("mistral")
    })
}

/// The name of a folder directly inside the checkpoint's.
fn plain_folder(path: &Path, value: &Value) -> Result<PathBuf> {
    let name = value.as_str().unwrap_or_default();
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(only)), None) if !name.contains(['\\', '\0']) => Ok(only.into()),
        _ => Err(Error::malformed(path, format!("the path {value} is not the name of a folder beside it"))),
    }
}

fn value(folder: &Path, path: PathBuf) -> Result<Option<(PathBuf, Value)>> {
    let Some(bytes) = read_confined(folder, path.clone(), FILE_LIMIT)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some((path, value))),
        Err(problem) => Err(Error::malformed(path, format!("not JSON: {problem}"))),
    }
}

fn object(folder: &Path, path: PathBuf) -> Result<Option<(PathBuf, Map<String, Value>)>> {
    match value(folder, path)? {
        None => Ok(None),
        Some((path, Value::Object(object))) => Ok(Some((path, object))),
        Some((path, _)) => Err(Error::malformed(path, "it is not a JSON object")),
    }
}

/// A number of tokens; transformers writes an absurdly large one, as a float, where there is no limit.
fn length(path: &Path, file: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    match file.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if number > 1e9 => Ok(None),
            Some(number) if number >= 1.0 && number.fract() == 0.0 => Ok(Some(number as usize)),
            _ => Err(Error::malformed(path, format!("`{key}` = {value} is not a number of tokens"))),
        },
    }
}

fn flag(path: &Path, file: &Map<String, Value>, key: &str) -> Result<bool> {
    match file.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(value) => Err(Error::malformed(path, format!("`{key}` = {value} is not true or false"))),
    }
}

#[cfg(test)]
mod tests;
