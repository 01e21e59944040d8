//! Whole folders: opened, loaded, mismatched, attacked. Single files are tested in `safetensors.rs`, names in `folder.rs`.

use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use half::{bf16, f16};

use super::*;

type Tensors = Vec<(&'static str, TensorData)>;

fn tensors() -> Tensors {
    let ramp = |count: usize| (0..count).map(|i| i as f32 * 0.25 - 1.0);
    vec![
        ("embed.weight", TensorData::new(ramp(12).map(bf16::from_f32).collect::<Vec<_>>(), [4, 3])),
        ("layers.0.proj.bias", TensorData::new(ramp(3).map(f16::from_f32).collect::<Vec<_>>(), [3])),
        ("layers.0.proj.weight", TensorData::new(ramp(9).collect::<Vec<_>>(), [3, 3])),
        ("norm.weight", TensorData::new(ramp(3).map(bf16::from_f32).collect::<Vec<_>>(), [3])),
    ]
}

fn write(path: &Path, tensors: &[(&str, TensorData)]) {
    let specifications: Vec<_> = tensors
        .iter()
        .map(|(name, data)| TensorSpecification { name: (*name).into(), dtype: data.dtype, shape: data.shape.to_vec() })
        .collect();
    let find = |wanted: &TensorSpecification| tensors.iter().find(|(name, _)| *name == wanted.name).unwrap().1.clone();
    write_safetensors(&crate::disk::System, path, &specifications, PYTORCH_FORMAT, |wanted| Ok(find(wanted))).unwrap();
}

fn with_config() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "test", "layers": 1}"#).unwrap();
    folder
}

fn single(tensors: &[(&str, TensorData)]) -> tempfile::TempDir {
    let folder = with_config();
    write(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn write_index(folder: &Path, weight_map: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = weight_map.iter().copied().collect();
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The tensors of even position in one shard, the others in another.
fn sharded(tensors: &[(&'static str, TensorData)]) -> tempfile::TempDir {
    let folder = with_config();
    for (at, shard) in SHARDS.iter().enumerate() {
        let part: Vec<_> = tensors.iter().skip(at).step_by(2).cloned().collect();
        write(&folder.path().join(shard), &part);
    }
    let map: Vec<_> = tensors.iter().enumerate().map(|(at, (name, _))| (*name, SHARDS[at % 2])).collect();
    write_index(folder.path(), &map);
    folder
}

fn loader(checkpoint: &Checkpoint, policy: DTypePolicy) -> TensorLoader<'_, Flex> {
    checkpoint.loader(&FlexDevice, policy)
}

fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

#[test]
fn sharded_equals_single() {
    let tensors = tensors();
    let (one, many) = (single(&tensors), sharded(&tensors));
    let (one, many) = (Checkpoint::open(one.path()).unwrap(), Checkpoint::open(many.path()).unwrap());
    assert!(one.names().eq(many.names()) && one.names().eq(tensors.iter().map(|(name, _)| *name)));
    for (name, data) in &tensors {
        assert_eq!(one.info(name), Some(TensorInfo { dtype: data.dtype, shape: data.shape.to_vec() }));
        assert_eq!(one.info(name), many.info(name));
        assert_eq!(&one.data(name).unwrap(), data);
        assert_eq!(one.data(name).unwrap(), many.data(name).unwrap());
    }
    assert_eq!((one.total_bytes(), many.total_bytes()), (24 + 6 + 36 + 6, 24 + 6 + 36 + 6));
    assert_eq!(one.fingerprint(), many.fingerprint());
    assert_eq!(one.config()["model_type"], "test");
    assert!(one.file("config.json").unwrap().is_some() && one.file("tokenizer.json").unwrap().is_none());
    assert!(matches!(one.data("absent"), Err(Error::TensorMismatch { missing, .. }) if missing == ["absent"]));
}

#[test]
fn the_fingerprint_follows_headers_and_not_weights() {
    let mut tensors = tensors();
    let of = |tensors: &Tensors| Checkpoint::open(single(tensors).path()).unwrap().fingerprint();
    let expected = of(&tensors);
    tensors[2].1 = TensorData::new(vec![9f32; 9], [3, 3]);
    assert_eq!(of(&tensors), expected);
    tensors[2].1 = TensorData::new(vec![9f32; 9], [9, 1]);
    assert_ne!(of(&tensors), expected);
}

#[test]
fn policies_decide_the_dtype_of_matrices_and_norms_are_f32() {
    let tensors = tensors();
    let folder = single(&tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (policy, expected) in [
        (DTypePolicy::Auto, DType::BF16),
        (DTypePolicy::Convert(DType::F16), DType::F16),
        (DTypePolicy::Convert(DType::F32), DType::F32),
        (DTypePolicy::Convert(DType::F64), DType::F64),
    ] {
        let mut loader = loader(&checkpoint, policy);
        let embed = loader.tensor("embed.weight", [4, 3]);
        assert_eq!(embed.dtype(), expected);
        // Quarters are exact in every dtype.
        assert_eq!(values(embed), tensors[0].1.iter::<f32>().collect::<Vec<_>>());
        for name in ["norm.weight", "layers.0.proj.bias"] {
            let precise = if expected == DType::F64 { DType::F64 } else { DType::F32 };
            assert_eq!(loader.precise(name, [3]).dtype(), precise);
        }
        assert!(
            loader.optional("q_norm.weight", [3]).is_none() && loader.optional_precise("k_norm.weight", [3]).is_none()
        );
        assert!(loader.optional("layers.0.proj.weight", [3, 3]).is_some());
        loader.finish().unwrap();
        assert!(loader.warnings().is_empty());
    }
}

#[test]
fn everything_that_does_not_fit_is_in_one_error() {
    let folder = single(&tensors());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut loader = loader(&checkpoint, DTypePolicy::Auto);
    assert_eq!(loader.tensor("norm.weight", [4]).dims(), [1]);
    assert_eq!(loader.tensor("z.absent", [7, 7]).dims(), [1, 1]);
    loader.tensor("layers.0.proj.bias", [3, 1]);
    loader.tensor("a.absent", [7]);
    loader.tensor("a.absent", [7]);
    let Err(Error::TensorMismatch { path, missing, surplus, misshapen }) = loader.finish() else { panic!() };
    assert_eq!(path, folder.path());
    assert_eq!(missing, ["a.absent", "z.absent"]);
    assert_eq!(surplus, ["embed.weight", "layers.0.proj.weight"]);
    let expected = [("layers.0.proj.bias", "F16 [3, 1]", "F16 [3]"), ("norm.weight", "BF16 [4]", "BF16 [3]")];
    assert!(
        misshapen.iter().map(|(name, expected, found)| (&**name, &**expected, &**found)).eq(expected),
        "{misshapen:?}"
    );
}

#[test]
fn ignored_names_are_not_surplus_and_others_stay_so() {
    let one = || TensorData::new(vec![1f32], [1]);
    let names =
        ["lm_head.weight", "layers.0.rotary_emb.inv_freq", "layers.1.rotary_emb.inv_freq", "my_rotary_emb.inv_freq"];
    let folder = single(&names.map(|name| (name, one())));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut loader = loader(&checkpoint, DTypePolicy::Auto);
    loader.ignore("lm_head.weight");
    loader.ignore("rotary_emb.inv_freq");
    let Err(Error::TensorMismatch { surplus, .. }) = loader.finish() else { panic!() };
    assert_eq!(surplus, ["my_rotary_emb.inv_freq"]);
}

#[test]
fn planted_nan_and_infinity_are_reported_by_name() {
    let mut tensors = tensors();
    tensors[2].1 = TensorData::new([vec![0f32; 8], vec![f32::NAN]].concat(), [3, 3]);
    tensors[3].1 = TensorData::new(vec![bf16::ONE, bf16::NEG_INFINITY, bf16::ONE], [3]);
    let folder = single(&tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for policy in [DTypePolicy::Auto, DTypePolicy::Convert(DType::F16)] {
        let mut loader = loader(&checkpoint, policy);
        loader.tensor("layers.0.proj.weight", [3, 3]);
        loader.tensor("layers.0.proj.weight", [3, 3]);
        loader.tensor("embed.weight", [4, 3]);
        loader.precise("norm.weight", [3]);
        assert_eq!(loader.warnings(), ["layers.0.proj.weight", "norm.weight"]);
    }
}

#[test]
fn a_value_too_large_for_the_wanted_dtype_is_an_error_naming_the_tensor() {
    let folder = single(&[("w", TensorData::new(vec![1f32, 70_000.0], [2])), ("v", TensorData::new(vec![1f32], [1]))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut refused = loader(&checkpoint, DTypePolicy::Convert(DType::F16));
    refused.tensor("w", [2]);
    refused.tensor("v", [1]);
    let error = refused.finish().unwrap_err().to_string();
    assert!(error.contains("tensor `w` has 1 values too large for F16; load it as F32"), "{error}");
    for policy in [DTypePolicy::Auto, DTypePolicy::Convert(DType::BF16)] {
        let mut accepted = loader(&checkpoint, policy);
        accepted.tensor("w", [2]);
        accepted.tensor("v", [1]);
        accepted.finish().unwrap();
    }
}

#[test]
fn a_file_truncated_while_loading_ends_in_its_own_error() {
    let folder = single(&tensors());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9).unwrap();
    let mut loader = loader(&checkpoint, DTypePolicy::Auto);
    loader.tensor("embed.weight", [4, 3]);
    loader.tensor("absent", [4, 3]);
    assert!(matches!(loader.finish(), Err(Error::Io { path: named, .. }) if named == path));
}

#[test]
fn an_index_that_does_not_agree_with_its_shards_is_refused() {
    let open = |weight_map: &[(&str, &str)], expected: &str| {
        let folder = sharded(&tensors());
        write(&folder.path().join("extra.safetensors"), &tensors()[..1]);
        write_index(folder.path(), weight_map);
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(
            matches!(error, Error::Malformed { .. }) && error.to_string().contains(expected),
            "{expected}: {error}"
        );
    };
    let (embed, bias, weight, norm) = (
        ("embed.weight", SHARDS[0]),
        ("layers.0.proj.bias", SHARDS[1]),
        ("layers.0.proj.weight", SHARDS[0]),
        ("norm.weight", SHARDS[1]),
    );
    open(&[("embed.weight", SHARDS[1]), bias, weight, norm], "`embed.weight` is not in model-00002");
    open(&[embed, bias, weight], "`norm.weight` of model-00002-of-00002.safetensors is not in the index");
    open(&[embed, bias, weight, norm, ("x", "extra.safetensors")], "`x` is not in extra");
    open(&[embed, bias, weight, norm, ("x", "absent.safetensors")], "not here: absent.safetensors");
    open(
        &[("embed.weight", "extra.safetensors"), bias, weight, norm],
        "`embed.weight` is in extra.safetensors and in model-00001",
    );
    open(&[], "empty");
    for name in ["../model.safetensors", "/etc/passwd", "a\\b", "x\0", "CON", ".."] {
        open(&[embed, bias, weight, norm, ("x", name)], "`");
    }
    let many: Vec<String> = (0..1_001).map(|i| format!("{i}.safetensors")).collect();
    open(&many.iter().map(|name| (name.as_str(), name.as_str())).collect::<Vec<_>>(), "1001 shards; 1000 are allowed");

    let folder = with_config();
    let index = folder.path().join("model.safetensors.index.json");
    for (text, expected) in [
        ("{", "not an index"),
        ("{}", "not an index"),
        (r#"{"weight_map": {"a": 1}}"#, "not an index"),
        (r#"{"weight_map": {"a": "x", "a": "y"}}"#, "`a` appears twice"),
        (r#"{"weight_map": {"a": "x"}, "weight_map": {}}"#, "duplicate field"),
    ] {
        std::fs::write(&index, text).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn folders_that_are_none_say_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let fails = |path: &Path, expected: &[&str]| {
        let error = Checkpoint::open(path).unwrap_err();
        let chain = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(expected.iter().all(|part| chain.contains(part)), "{expected:?}: {chain}");
        error
    };
    fails(&at("absent"), &["absent"]);
    std::fs::write(at("file.safetensors"), "x").unwrap();
    fails(&at("file.safetensors"), &["file.safetensors", "this is a file", "folder"]);
    std::fs::write(at("weights.pth"), "x").unwrap();
    assert!(matches!(fails(&at("weights.pth"), &[]), Error::Pickle { .. }));
    std::fs::remove_file(at("weights.pth")).unwrap();
    fails(folder.path(), &["no config.json here", "model.safetensors"]);

    std::fs::write(at("pytorch_model.bin"), "x").unwrap();
    assert!(matches!(fails(folder.path(), &["pytorch_model.bin", "save_pretrained"]), Error::Pickle { .. }));
    std::fs::write(at("config.json"), "{}").unwrap();
    assert!(matches!(fails(folder.path(), &["pytorch_model.bin"]), Error::Pickle { .. }));
    std::fs::remove_file(at("pytorch_model.bin")).unwrap();
    fails(folder.path(), &["no weights here", "model.safetensors", "model.safetensors.index.json"]);

    write(&at("model.safetensors"), &tensors());
    std::fs::write(at("pytorch_model.bin"), "x").unwrap();
    Checkpoint::open(folder.path()).unwrap();
    std::fs::write(at("model.safetensors"), b"PK\x03\x04 a renamed pickle").unwrap();
    assert!(matches!(fails(folder.path(), &["model.safetensors"]), Error::Pickle { .. }));

    for (config, expected) in
        [("[]", "not a JSON object"), ("{", "not JSON"), ("", "not JSON"), ("null", "not a JSON object")]
    {
        std::fs::write(at("config.json"), config).unwrap();
        fails(folder.path(), &["config.json", expected]);
    }
    std::fs::write(at("config.json"), format!("{{\"a\": \"{}\"}}", "x".repeat(1_000_000))).unwrap();
    fails(folder.path(), &["config.json", "more than the 1000000 bytes"]);
    std::fs::write(at("config.json"), "[".repeat(500_000)).unwrap();
    fails(folder.path(), &["config.json", "not JSON"]);
}

#[test]
#[should_panic(expected = "weights are loaded as F64, F32, F16 or BF16, not I64")]
fn a_policy_that_is_no_float_is_the_callers_fault() {
    let folder = single(&tensors());
    loader(&Checkpoint::open(folder.path()).unwrap(), DTypePolicy::Convert(DType::I64));
}
