//! Which files of a repo a model needs, and whether a snapshot has them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::error::Error;
use crate::name::is_portable;

/// What is downloaded where a repo has it, besides weights: models, encoders and adapters read these.
pub(crate) const SMALL: [&str; 13] = [
    "config.json",
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    ADAPTER_CONFIG,
];
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
/// Which file has which tensor, where there are several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Of PEFT, of mlx-lm.
const ADAPTERS: [&str; 2] = ["adapter_model.safetensors", "adapters.safetensors"];
/// How weights are called that may run code when they are loaded, or that we do not read.
const OTHER_WEIGHTS: [&str; 8] = [".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"];

/// In every repo of the hub and of use to no program: a snapshot that has it and weights, which take longest, was downloaded as a whole.
const WHOLE: &str = ".gitattributes";

/// Bytes that the index may have: a hundred for each of 100,000 tensors, and room.
const MAX_INDEX_BYTES: u64 = 16_000_000;

/// What to download of a repo: small files first, so that a snapshot with weights has everything.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub files: Vec<String>,
    /// Files of [`SMALL`] that the repo does not have.
    pub absent: Vec<&'static str>,
    /// Whether [`INDEX`] is the last of `files`, and the shards it names have to follow.
    pub is_sharded: bool,
}

/// Selects from a repo's listing.
pub(crate) fn select(repo: &str, listing: &[String]) -> Result<Selection, Error> {
    let has = |name: &str| listing.iter().any(|listed| listed == name);
    let (small, absent): (Vec<&str>, Vec<&str>) = SMALL.into_iter().partition(|name| has(name));
    let mut files: Vec<String> = small.into_iter().map(str::to_owned).collect();
    let mut is_sharded = false;
    let adapter = ADAPTERS.into_iter().find(|name| has(ADAPTER_CONFIG) && has(name));
    files.extend(adapter.map(str::to_owned));
    match (has(CONFIG), has(SINGLE), has(INDEX)) {
        // One file before shards, as transformers does.
        (true, true, _) => files.push(SINGLE.to_owned()),
        (true, false, true) => {
            files.push(INDEX.to_owned());
            is_sharded = true;
        }
        _ if adapter.is_some() => {}
        (true, false, false) => {
            let other = |name: &&String| OTHER_WEIGHTS.iter().any(|ending| name.ends_with(ending));
            let others = listing.iter().filter(other).take(3).map(|name| name.escape_debug().to_string()).collect();
            return Err(Error::NoWeights { repo: repo.to_owned(), others });
        }
        (false, ..) => return Err(Error::NoFile { repo: repo.to_owned(), file: CONFIG.to_owned() }),
    }
    Ok(Selection { files, absent, is_sharded })
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::HashMap<String, String>,
}

/// The shards that an index names.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    let problem = |problem: String| Error::Index { path: index.to_owned(), problem };
    let mut text = String::new();
    let file = File::open(index).map_err(Error::io(index))?;
    file.take(MAX_INDEX_BYTES + 1).read_to_string(&mut text).map_err(Error::io(index))?;
    if text.len() as u64 > MAX_INDEX_BYTES {
        return Err(problem(format!("more than the {MAX_INDEX_BYTES} bytes that an index may have")));
    }
    let parsed: Index = serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match names.iter().find(|name| !is_portable(name) || name.contains('/') || !name.ends_with(".safetensors")) {
        Some(name) => Err(problem(format!("`{}` cannot be the name of a shard", name.escape_debug()))),
        None => Ok(names),
    }
}

/// What a snapshot lacks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Nothing.
    Nothing,
    /// A file that may not even exist: worth asking for, but not worth failing for.
    Perhaps(String),
    /// A file without which nothing works.
    Needed(String),
}

/// What a snapshot lacks; `is_absent` knows files that the repo does not have. Other tools leave out what they do not read themselves, such as how
/// an encoder pools, and a model without it gives other results: each small file is there, or known not to exist, or asked for once, unless the
/// snapshot is of the whole repo.
pub(crate) fn lack(snapshot: &Path, is_absent: impl Fn(&str) -> bool) -> Result<Lack, Error> {
    let has = |name: &str| snapshot.join(name).is_file();
    let needed = |name: &str| Ok(Lack::Needed(name.to_owned()));
    let has_adapter = has(ADAPTER_CONFIG) && ADAPTERS.into_iter().any(has);
    if !has(CONFIG) {
        return if has_adapter { Ok(Lack::Nothing) } else { needed(CONFIG) };
    }
    if !has(SINGLE) {
        if !has(INDEX) {
            return if has_adapter { Ok(Lack::Nothing) } else { needed(SINGLE) };
        }
        if let Some(shard) = shards(&snapshot.join(INDEX))?.iter().find(|shard| !has(shard)) {
            return needed(shard);
        }
    }
    if has(WHOLE) {
        return Ok(Lack::Nothing);
    }
    // What an adapter folder has is asked for by that folder's own name.
    let unknown = SMALL.into_iter().find(|&name| name != ADAPTER_CONFIG && !has(name) && !is_absent(name));
    Ok(unknown.map_or(Lack::Nothing, |name| Lack::Perhaps(name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(listing: &[&str]) -> Result<Vec<String>, Error> {
        let listing: Vec<String> = listing.iter().map(|name| (*name).to_owned()).collect();
        select("a/b", &listing).map(|selection| selection.files)
    }

    #[test]
    fn weights_come_last_and_pickles_never() {
        let listing =
            ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "README.md", "config.json", "x.onnx"];
        assert_eq!(selected(&listing).unwrap(), ["config.json", "tokenizer.json", "model.safetensors"]);
        let listing = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "config.json"];
        assert_eq!(selected(&listing).unwrap(), ["config.json", "model.safetensors.index.json"]);
        let encoder = ["1_Pooling/config.json", "modules.json", "config.json", "onnx/model.onnx", "model.safetensors"];
        assert_eq!(
            selected(&encoder).unwrap(),
            ["config.json", "modules.json", "1_Pooling/config.json", "model.safetensors"]
        );
        let adapter = ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt"];
        assert_eq!(selected(&adapter).unwrap(), ["adapter_config.json", "adapter_model.safetensors"]);
    }

    #[test]
    fn a_repo_without_safetensors_is_refused_by_what_it_has() {
        let error = selected(&["config.json", "pytorch_model.bin"]).unwrap_err().to_string();
        assert!(error.contains("pytorch_model.bin") && error.contains("safetensors"), "{error}");
        assert!(matches!(selected(&["README.md"]), Err(Error::NoFile { .. })));
        assert!(matches!(selected(&["adapter_config.json"]), Err(Error::NoFile { .. })));
    }

    #[test]
    fn an_index_names_files_beside_it_only() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join(INDEX);
        let hostile =
            ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "NUL.safetensors", "x.bin"];
        for name in hostile {
            std::fs::write(&index, serde_json::json!({"weight_map": {"w": name}}).to_string()).unwrap();
            assert!(matches!(shards(&index), Err(Error::Index { .. })), "{name}");
        }
        std::fs::write(&index, "{").unwrap();
        assert!(matches!(shards(&index), Err(Error::Index { .. })));
    }

    #[test]
    fn a_snapshot_lacks_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let lack = |absent: bool| lack(folder.path(), |_| absent).unwrap();
        assert_eq!(lack(false), Lack::Needed(CONFIG.into()));
        write(CONFIG, "{}");
        assert_eq!(lack(false), Lack::Needed(SINGLE.into()));
        write(INDEX, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
        write("1.safetensors", "");
        assert_eq!(lack(false), Lack::Needed("2.safetensors".into()));
        write("2.safetensors", "");
        assert_eq!(lack(true), Lack::Nothing);
        // What another tool had no use for may be in the repo, unless that tool took all of it.
        assert_eq!(lack(false), Lack::Perhaps("generation_config.json".into()));
        write(WHOLE, "*.safetensors filter=lfs");
        assert_eq!(lack(false), Lack::Nothing);
        std::fs::remove_file(folder.path().join(WHOLE)).unwrap();
        std::fs::create_dir_all(folder.path().join("1_Pooling")).unwrap();
        std::fs::create_dir_all(folder.path().join("2_Dense")).unwrap();
        for name in SMALL.into_iter().filter(|name| ![CONFIG, ADAPTER_CONFIG].contains(name)) {
            assert_eq!(lack(false), Lack::Perhaps(name.into()));
            write(name, "{}");
        }
        assert_eq!(lack(false), Lack::Nothing);
    }
}
