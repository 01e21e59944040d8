//! Adapters are values: swapped on a loaded model, several by name, continued from.

mod support;

use firebrick::core::lora::Adapters;
use firebrick::prelude::*;
use support::{Golden, Inner, assert_near, floats, logits};

contract! {
    fn swapping_leaves_no_trace_on_the_base<B>(device) {
        let golden = Golden::open("qwen3-tiny");
        let model = golden.load::<Inner<B>>(&device);
        let ids = golden.rows("single.input_ids");
        let plain = logits(&*model, &ids);
        let mut adapters = Adapters::new();
        for name in ["lora_qv", "lora_all_rslora"] {
            adapters.insert(name, Adapter::load(&golden.folder.join(name), &device).unwrap());
        }
        assert_eq!(adapters.names().collect::<Vec<_>>(), ["lora_all_rslora", "lora_qv"]);
        let with = |name: &str| logits(&*adapters.attach(name, &*model).unwrap(), &ids);
        let first = with("lora_qv");
        assert_ne!(first, plain);
        assert_ne!(with("lora_all_rslora"), first);
        assert_eq!(with("lora_qv"), first);
        assert_eq!(logits(&*model, &ids), plain);
        let error = adapters.attach("absent", &*model).err().unwrap().to_string();
        assert!(error.contains("absent") && error.contains("lora_qv"), "{error}");
    }
}

contract! {
    fn attaching_replaces_the_adapter_before<B>(device) {
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<Inner<B>>(&device);
        let ids = golden.rows("single.input_ids");
        let load = |name: &str| Adapter::load(&golden.folder.join(name), &device).unwrap();
        let all = load("lora_all_rslora").attach(&*model).unwrap();
        let replaced = load("lora_qv").attach(&*all).unwrap();
        assert_eq!(logits(&*replaced, &ids), logits(&*load("lora_qv").attach(&*model).unwrap(), &ids));
    }
}

contract! {
    fn handles_share_the_weights<B>(device) {
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<Inner<B>>(&device);
        let merged = Adapter::load(&golden.folder.join("lora_qv"), &device).unwrap().merge(&*model).unwrap();
        let weight = |model: &dyn CausalLm<Inner<B>>| {
            let mut found = None;
            model.boxed().each_linear(&mut |path, linear| {
                if path == "model.layers.0.self_attn.q_proj" {
                    found = Some(floats(linear.weight.clone()));
                }
            });
            found.unwrap()
        };
        assert_ne!(weight(&*merged), weight(&*model), "merging changed the merged handle");
        let again = golden.load::<Inner<B>>(&device);
        assert_eq!(weight(&*again), weight(&*model), "and not the original");
    }
}

contract! {
    fn a_seed_decides_a_new_adapter<B>(device) {
        let model = Golden::open("qwen2-tiny").load::<Inner<B>>(&device);
        let a = |seed| {
            let adapter = Adapter::create(&*model, &LoraConfig::default(), seed).unwrap();
            adapter.modules().values().flat_map(|module| floats(module.a.clone())).collect::<Vec<f32>>()
        };
        assert_eq!(a(1), a(1));
        assert_ne!(a(1), a(2));
        // Kaiming-uniform with a = √5 over 64 inputs: within 1/8, and nearly reaching it.
        let largest = a(1).iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert!(largest <= 0.125 && largest > 0.12, "{largest}");
    }
}

contract! {
    fn a_session_of_another_adapter_is_not_continued<B>(device) {
        let golden = Golden::open("qwen2-tiny");
        let base = LanguageModel::<Inner<B>>::load(&golden.folder, &device).unwrap();
        let tuned = base.with_adapter(&base.load_adapter(golden.folder.join("lora_all_rslora")).unwrap()).unwrap();
        let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
        let options = GenerateOptions::greedy().max_tokens(6);
        let answer = |model: &LanguageModel<Inner<B>>, session: Option<Session<Inner<B>>>| {
            let mut generation = model.generate_from(&prompt, &options, session).unwrap();
            let logprobs: Vec<f32> = generation.by_ref().map(|piece| piece.unwrap().token.logprob).collect();
            (logprobs, generation.into_session())
        };
        let (plain, session) = answer(&base, None);
        let (expected, _) = answer(&tuned, None);
        assert_ne!(plain, expected);
        let (found, session_of_tuned) = answer(&tuned, Some(session));
        assert_eq!(found, expected, "what the base computed was taken for what the adapter computes");
        let (again, _) = answer(&tuned, Some(session_of_tuned));
        assert_near(&again, &expected, 1e-4, 1e-4, "its own session");
    }
}
