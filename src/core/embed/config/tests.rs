//! Every form of the files, and what is refused in them.

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::{TensorSpecification, write_safetensors};

/// A checkpoint folder with these files.
fn folder(config: &Value, files: &[(&str, Value)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let none: [TensorSpecification; 0] = [];
    write_safetensors(&crate::disk::System, &folder.path().join("model.safetensors"), &none, &[], |_| unreachable!())
        .unwrap();
    for (name, value) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    }
    folder
}

fn read(files: &[(&str, Value)]) -> Result<EmbedConfig> {
    EmbedConfig::read(&Checkpoint::open(folder(&json!({}), files).path()).unwrap())
}

fn modules(names: &[&str]) -> Value {
    let module = |(index, name): (usize, &&str)| {
        let path = if index == 0 { String::new() } else { format!("{index}_{}", name.rsplit('.').next().unwrap()) };
        json!({"idx": index, "name": index.to_string(), "path": path, "type": name})
    };
    names.iter().enumerate().map(module).collect()
}

fn pooled(pooling: Value) -> Result<Vec<Pooling>> {
    let names = ["a.Transformer", "a.Pooling"];
    read(&[("modules.json", modules(&names)), ("1_Pooling/config.json", pooling)]).map(|config| config.pooling)
}

#[test]
fn both_forms_of_the_pooling_are_read() {
    for pooling in Pooling::ALL {
        assert_eq!(pooled(json!({"pooling_mode": pooling.name(), "embedding_dimension": 4})).unwrap(), [pooling]);
    }
    assert_eq!(pooled(json!({"pooling_mode": ["mean", "cls"]})).unwrap(), [Pooling::Mean, Pooling::Cls]);
    for (key, pooling) in [
        ("cls_token", Pooling::Cls),
        ("max_tokens", Pooling::Max),
        ("mean_tokens", Pooling::Mean),
        ("mean_sqrt_len_tokens", Pooling::MeanSqrtLength),
        ("weightedmean_tokens", Pooling::WeightedMean),
        ("lasttoken", Pooling::LastToken),
    ] {
        let mut switches = json!({"word_embedding_dimension": 4, "pooling_mode_cls_token": false});
        switches[format!("pooling_mode_{key}")] = true.into();
        assert_eq!(pooled(switches).unwrap(), [pooling], "{key}");
    }
    let both = json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true});
    assert_eq!(pooled(both).unwrap(), [Pooling::Cls, Pooling::Mean]);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    for (pooling, named) in [
        (json!({"pooling_mode": "median"}), "median"),
        (json!({"pooling_mode": ["mean", 3]}), "pooling_mode"),
        (json!({"pooling_mode_median_tokens": true}), "pooling_mode_median_tokens"),
        (json!({"pooling_mode_mean_tokens": "yes"}), "pooling_mode_mean_tokens"),
        (json!({"pooling_mode_mean_tokens": false}), "no pooling"),
        (json!({"pooling_mode": "mean", "include_prompt": false}), "include_prompt"),
        (json!([1]), "object"),
    ] {
        let error = pooled(pooling).unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
        assert!(error.contains("1_Pooling"), "{error}");
    }
    for names in [&["a.Transformer", "a.Pooling", "a.Dense"][..], &["a.WordEmbeddings"], &["a.Pooling"]] {
        let files = [("modules.json", modules(names)), ("1_Pooling/config.json", json!({"pooling_mode": "mean"}))];
        let error = read(&files).unwrap_err().to_string();
        assert!(error.contains(names.last().unwrap()), "{error}");
    }
    assert!(read(&[("modules.json", modules(&["a.Transformer"]))]).unwrap_err().to_string().contains("no Pooling"));
    for path in ["../x", "/etc", "a/b", "..", ""] {
        let chain = json!([{"type": "a.Transformer"}, {"type": "a.Pooling", "path": path}]);
        let error = read(&[("modules.json", chain)]).unwrap_err().to_string();
        assert!(error.contains("not the name of a folder"), "{path}: {error}");
    }
}

#[test]
fn normalisation_is_what_the_modules_say() {
    let pooling = ("1_Pooling/config.json", json!({"pooling_mode": "cls"}));
    let old = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"];
    assert!(!read(&[("modules.json", modules(&old)), pooling.clone()]).unwrap().normalize);
    let new = [
        "x.base.modules.transformer.Transformer",
        "x.y.Pooling",
        "sentence_transformers.base.modules.normalize.Normalize",
    ];
    assert!(read(&[("modules.json", modules(&new)), pooling]).unwrap().normalize);
    let config = read(&[]).unwrap();
    assert!(config.normalize && config.pooling == [Pooling::Mean]);
}

#[test]
fn lengths_come_from_the_first_file_that_has_one() {
    let tokenizer = ("tokenizer_config.json", json!({"model_max_length": 77}));
    assert_eq!(read(std::slice::from_ref(&tokenizer)).unwrap().max_tokens, Some(77));
    let sentence = ("sentence_bert_config.json", json!({"max_seq_length": 20, "do_lower_case": true}));
    let config = read(&[tokenizer.clone(), sentence]).unwrap();
    assert_eq!((config.max_tokens, config.lowercase), (Some(20), true));
    let none = ("sentence_bert_config.json", json!({"max_seq_length": null}));
    assert_eq!(read(&[tokenizer, none]).unwrap().max_tokens, Some(77));
    assert_eq!(read(&[("tokenizer_config.json", json!({"model_max_length": 1e30}))]).unwrap().max_tokens, None);
    for bad in [json!(0), json!(-3), json!(1.5), json!("a")] {
        let error = read(&[("sentence_bert_config.json", json!({"max_seq_length": bad}))]).unwrap_err().to_string();
        assert!(error.contains("max_seq_length"), "{error}");
    }
}

#[test]
fn prompts_are_the_files_or_those_of_e5() {
    let prompts = |value: Value| {
        let config = read(&[("config_sentence_transformers.json", value)]).unwrap();
        (config.query_prefix, config.passage_prefix)
    };
    let pair = |query: &str, passage: &str| (query.to_owned(), passage.to_owned());
    assert_eq!(prompts(json!({"prompts": {"query": "q: ", "document": "d: "}})), pair("q: ", "d: "));
    assert_eq!(prompts(json!({"prompts": {"s2p": "s: "}, "default_prompt_name": "s2p"})), pair("s: ", "s: "));
    assert_eq!(prompts(json!({"prompts": {"query": "", "document": ""}})), pair("", ""));
    assert_eq!(prompts(json!({})), pair("", ""));
    let missing = json!({"prompts": {}, "default_prompt_name": "x"});
    assert!(read(&[("config_sentence_transformers.json", missing)]).unwrap_err().to_string().contains("`x`"));

    let of_name = |name: &str| {
        let config = json!({"_name_or_path": name});
        // What version 5 and later write for every model says nothing.
        let files = [("config_sentence_transformers.json", json!({"prompts": {"query": "", "document": ""}}))];
        EmbedConfig::read(&Checkpoint::open(folder(&config, &files).path()).unwrap()).unwrap().query_prefix
    };
    for name in ["intfloat/e5-small-v2", "multilingual-e5-base", "models/E5_large"] {
        assert_eq!(of_name(name), "query: ", "{name}");
    }
    for name in ["BAAI/bge-small", "intfloat/multilingual-e5-large-instruct", "e5-mistral-7b", "e500", ""] {
        assert_eq!(of_name(name), "", "{name}");
    }
}

#[test]
fn a_snapshot_in_a_cache_is_known_by_its_repo() {
    let cache = TempDir::new().unwrap();
    let snapshot = cache.path().join("models--intfloat--e5-small-v2/snapshots/abc");
    std::fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    std::fs::rename(folder(&json!({}), &[]).keep(), &snapshot).unwrap();
    assert_eq!(EmbedConfig::read(&Checkpoint::open(&snapshot).unwrap()).unwrap().passage_prefix, "passage: ");
}
