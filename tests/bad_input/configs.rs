//! `config.json`: absurd sizes, mathematics that is not implemented, contradictions.

use firebrick::core::error::Error;
use firebrick::core::sequence::Sequences;
use serde_json::{Map, Value, json};

use crate::contract;
use crate::damage::{CONFIG, Stored, copy, edit_tensors, load, refused, replace, says, set};
use crate::support::{DECODERS, Inner};

contract! {
    fn absurd_sizes_are_refused_by_the_name_of_their_key<B>(device) {
        for (key, value) in [
            ("num_hidden_layers", json!(1_000_000_000)),
            ("num_hidden_layers", json!(0)),
            ("num_attention_heads", json!(0)),
            ("num_attention_heads", json!(4.5)),
            ("num_key_value_heads", json!(0)),
            ("num_key_value_heads", json!(3)),
            ("vocab_size", json!(-1)),
            ("vocab_size", json!(null)),
            ("hidden_size", json!("64")),
            ("hidden_size", json!(1u64 << 63)),
            ("intermediate_size", json!([160])),
            ("max_position_embeddings", json!(0)),
            ("head_dim", json!(15)),
            ("head_dim", json!(0)),
            ("rope_theta", json!(0)),
            ("rope_theta", json!(-10_000.0)),
            ("rms_norm_eps", json!(-1e-6)),
            ("rms_norm_eps", json!("1e-6")),
            ("tie_word_embeddings", json!("yes")),
        ] {
            let folder = copy("qwen2-tiny");
            set(folder.path(), key, &value);
            let error = refused(load::<Inner<B>>(folder.path(), &device), &format!("{key} = {value}"));
            assert!(matches!(error, Error::Malformed { .. }), "{key} = {value}: {error:?}");
            says(&error, &[CONFIG, &format!("`{key}`")]);
        }
    }
}

contract! {
    fn more_heads_than_the_hidden_state_has_room_for_are_refused<B>(device) {
        let folder = copy("qwen2-tiny");
        // hidden_size / num_attention_heads is 0, and projections without rows fit that.
        set(folder.path(), "num_attention_heads", &json!(128));
        set(folder.path(), "num_key_value_heads", &json!(128));
        edit_tensors(&folder.path().join("model.safetensors"), |tensors| {
            for (name, tensor) in tensors.iter_mut() {
                let cut = ["q_proj", "k_proj", "v_proj"].iter().any(|projection| name.contains(projection));
                match tensor.shape.clone()[..] {
                    [_, inputs] if cut => *tensor = Stored::floats(&[0, inputs], 0.0),
                    [_] if cut => *tensor = Stored::floats(&[0], 0.0),
                    [out, _] if name.contains("o_proj") => *tensor = Stored::floats(&[out, 0], 0.0),
                    _ => {}
                }
            }
        });
        says(&refused(load::<Inner<B>>(folder.path(), &device), "heads of nothing"), &["`num_attention_heads`"]);
    }
}

contract! {
    fn mathematics_that_is_not_implemented_is_refused_by_name<B>(device) {
        let default = |more: &str, value: Value| json!({"rope_type": "default", "rope_theta": 1e6, more: value});
        let layers = json!({"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}});
        for (key, value, named) in [
            ("hidden_act", json!("gelu"), "hidden_act"),
            ("hidden_act", json!(5), "hidden_act"),
            ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "quantization_config"),
            ("num_experts", json!(64), "num_experts"),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
            ("attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
            ("final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
            ("no_rope_layers", json!([1, 0, 1]), "no_rope_layers"),
            ("attention_multiplier", json!(0.1), "attention_multiplier"),
            ("residual_multiplier", json!(0.22), "residual_multiplier"),
            ("original_max_position_embeddings", json!(4096), "original_max_position_embeddings"),
            ("rope_scaling", json!({"type": "dynamic", "factor": 2.0}), "rope_scaling"),
            ("rope_scaling", json!({"rope_type": "longrope", "short_factor": [1.0]}), "rope_scaling"),
            ("rope_scaling", json!({"type": "yarn", "factor": 4.0, "mscale": 0.7}), "mscale"),
            ("rope_scaling", json!({"type": "linear", "factor": 4.0, "beta_fast": 16}), "beta_fast"),
            ("rope_parameters", default("partial_rotary_factor", json!(0.25)), "partial_rotary_factor"),
            ("rope_parameters", default("mrope_section", json!([16, 24, 24])), "mrope_section"),
            ("rope_parameters", layers, "rope_parameters"),
            ("layer_types", json!(["full_attention", "linear_attention", "full_attention"]), "layer_types"),
        ] {
            let folder = copy("qwen2-tiny");
            set(folder.path(), key, &value);
            let error = refused(load::<Inner<B>>(folder.path(), &device), &format!("{key} = {value}"));
            let Error::UnsupportedConfig { path, key, .. } = error else { panic!("{key} = {value}: {error:?}") };
            assert_eq!((path, &*key), (folder.path().join(CONFIG), named));
        }
    }
}

contract! {
    fn a_config_that_says_two_things_about_rotary_positions_is_refused<B>(device) {
        let folder = copy("qwen2-tiny");
        set(folder.path(), "rope_parameters", &json!({"rope_type": "default", "rope_theta": 1e6}));
        // As happens when YaRN is switched on by hand, the way older instructions say, in a config of transformers 5.
        let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
        set(folder.path(), "rope_scaling", &yarn);
        let error = refused(load::<Inner<B>>(folder.path(), &device), "two things");
        says(&error, &[CONFIG, "`rope_scaling`", "`rope_parameters`"]);
        for same in [json!({"rope_type": "default", "rope_theta": 1e6}), json!(null)] {
            set(folder.path(), "rope_scaling", &same);
            load::<Inner<B>>(folder.path(), &device).unwrap();
        }
    }
}

contract! {
    fn every_key_of_a_config_survives_every_hostile_value<B>(device) {
        let hostile = [
            json!(null), json!(true), json!(false), json!(-1), json!(0), json!(1), json!(2), json!(7),
            json!(1_000_000_000), json!(u64::MAX), json!(1.5), json!(1e300), json!(-0.0), json!(""), json!("x"),
            json!([]), json!([1]), json!({}), json!({"a": {}}), json!({"rope_type": "yarn", "factor": 2}),
        ];
        let more = ["rope_scaling", "rope_parameters", "layer_types", "attention_bias", "mlp_bias", "head_dim"];
        for name in DECODERS {
            let folder = copy(name);
            let path = folder.path().join(CONFIG);
            let original: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            for key in original.keys().map(String::as_str).chain(more) {
                for value in &hostile {
                    let mut config = original.clone();
                    config.insert(key.into(), value.clone());
                    replace(&path, Value::Object(config).to_string());
                    // Either an error that names the place, or a model that computes.
                    match load::<Inner<B>>(folder.path(), &device) {
                        Err(error) => says(&error, &[folder.path().to_str().unwrap()]),
                        Ok(model) => {
                            let hidden = model.hidden(&Sequences::whole(&[[1u32, 2, 3]], &device), None);
                            assert_eq!(hidden.dims(), [3, model.facts().hidden], "{name} {key} = {value}");
                        }
                    }
                }
            }
        }
    }
}
