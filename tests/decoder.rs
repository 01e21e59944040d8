//! Decoders equal transformers, and the one forward gives the same whichever way it is cut.

mod support;

use burn::tensor::DType;
use firebrick::KernelBackend;
use firebrick::backend::packed::{BLOCK, Format};
use firebrick::core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick::core::decode::{Decode, DecodeOptions};
use firebrick::core::lora::Adapter;
use firebrick::core::model::CausalLm;
use firebrick::core::sequence::{Segments, Sequences};
use firebrick::models::load_causal_lm;
use support::{DECODERS, Golden, Inner, assert_golden, assert_near, cached_logits, floats, logits, logits_through};

const ADAPTERS: [&str; 2] = ["lora_qv", "lora_all_rslora"];

fn greedy<B: KernelBackend>(model: &dyn CausalLm<B>, prompt: &[u32], count: usize) -> Vec<u32> {
    let options = DecodeOptions { max_tokens: count, ..Default::default() };
    Decode::new(model, prompt, options).unwrap().map(|token| token.unwrap().id).collect()
}

contract! {
    fn logits_equal_transformers<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let ids = golden.rows("single.input_ids");
            let tokens = Sequences::whole(&ids, &device);
            let hidden = model.hidden(&tokens, None);
            assert_golden(&floats(hidden.clone()), &golden.floats("single.last_hidden").0, name);
            assert_golden(&floats(model.head(hidden)), &golden.floats("single.logits").0, name);
        }
    }
}

contract! {
    fn a_batch_equals_transformers_on_padded_rows<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            for side in ["right_pad", "left_pad"] {
                let mask = golden.rows(&format!("{side}.attention_mask"));
                let real = |row: &[u32], mask: &[u32]| -> Vec<u32> {
                    row.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect()
                };
                let ids = golden.rows(&format!("{side}.input_ids"));
                let ids: Vec<Vec<u32>> = ids.iter().zip(&mask).map(|(ids, mask)| real(ids, mask)).collect();
                let (expected, shape) = golden.floats(&format!("{side}.logits"));
                let expected: Vec<f32> = expected
                    .chunks(shape[2])
                    .zip(mask.concat())
                    .filter(|(_, m)| *m == 1)
                    .flat_map(|(logits, _)| logits.to_vec())
                    .collect();
                assert_golden(&logits(&*model, &ids), &expected, &format!("{name} {side}"));
            }
        }
    }
}

contract! {
    fn greedy_tokens_equal_transformers<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let prompt = &golden.rows("single.input_ids")[0];
            assert_eq!(greedy(&*model, prompt, 32), golden.rows("single.greedy32")[0], "{name}");
            for adapter in ADAPTERS {
                let handle = Adapter::load(&golden.folder.join(adapter), &device).unwrap().attach(&*model).unwrap();
                let expected = &golden.rows(&format!("{adapter}.greedy32"))[0];
                assert_eq!(&greedy(&*handle, prompt, 32), expected, "{name} {adapter}");
            }
            assert_eq!(greedy(&*model, prompt, 32), golden.rows("single.greedy32")[0], "{name} after the adapters");
        }
    }
}

contract! {
    fn adapters_equal_peft_attached_and_merged<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let ids = golden.rows("single.input_ids");
            for folder in ADAPTERS {
                let adapter = Adapter::load(&golden.folder.join(folder), &device).unwrap();
                let attached = logits(&*adapter.attach(&*model).unwrap(), &ids);
                let merged = logits(&*adapter.merge(&*model).unwrap(), &ids);
                assert_golden(&attached, &golden.floats(&format!("{folder}.logits")).0, &format!("{name} {folder}"));
                assert_golden(&merged, &golden.floats(&format!("{folder}.merged_logits")).0, &format!("{name} {folder} merged"));
                assert_near(&merged, &attached, 2e-4, 1e-4, "merged = unmerged");
            }
        }
    }
}

contract! {
    fn cached_decode_equals_one_pass<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let ids = golden.rows("single.input_ids").remove(0);
            let whole = logits(&*model, std::slice::from_ref(&ids));
            let vocabulary = model.facts().vocabulary;
            // A capacity of 2 makes the cache grow on the way.
            let mut cache = model.new_cache(1, 2);
            for (position, id) in ids.iter().enumerate() {
                let tokens = Sequences::new(&[*id], Segments::continuing([(1, position)]), &device);
                let step = floats(model.head(model.hidden(&tokens, Some(&mut cache))));
                assert_near(&step, &whole[position * vocabulary..(position + 1) * vocabulary], 1e-4, 1e-4, name);
            }
        }
    }
}

contract! {
    fn chunked_prefill_equals_the_whole<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let ids = golden.rows("single.input_ids").remove(0);
            let whole = logits(&*model, std::slice::from_ref(&ids));
            let mut cache = model.new_cache(1, ids.len());
            let mut chunked = Vec::new();
            for chunk in ids.chunks(5) {
                let segments = Segments::continuing([(chunk.len(), cache.len(0))]);
                let tokens = Sequences::new(chunk, segments, &device);
                chunked.extend(floats(model.head(model.hidden(&tokens, Some(&mut cache)))));
            }
            assert_near(&chunked, &whole, 1e-4, 1e-4, name);
        }
    }
}

contract! {
    fn rows_that_are_wanted_are_those_of_the_whole<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let adapter = Adapter::load(&golden.folder.join(ADAPTERS[1]), &device).unwrap();
            let model = adapter.attach(&*model).unwrap();
            let ids = golden.rows("single.input_ids").remove(0);
            let lengths = [ids.len() - 3, 3];
            let whole = model.hidden(&Sequences::new(&ids, Segments::whole(lengths), &device), None);
            let (whole, hidden) = (floats(whole), model.facts().hidden);
            for wanted in [vec![0], vec![ids.len() - 1, 2, 3], Segments::whole(lengths).last_rows()] {
                let expected: Vec<f32> = wanted.iter().flat_map(|row| &whole[row * hidden..][..hidden]).copied().collect();
                let tokens = Sequences::new(&ids, Segments::whole(lengths).wanting(wanted), &device);
                let mut cache = model.new_cache(lengths.len(), lengths[0]);
                for cache in [None, Some(&mut cache)] {
                    assert_near(&floats(model.hidden(&tokens, cache)), &expected, 1e-5, 1e-5, name);
                }
                // What was not wanted was seen all the same.
                assert_eq!([cache.len(0), cache.len(1)], lengths, "{name}");
            }
        }
    }
}

contract! {
    fn a_narrow_cache_costs_its_rounding_or_is_refused<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let ids = golden.rows("single.input_ids").remove(0);
            let whole = logits(&*model, std::slice::from_ref(&ids));
            let largest = whole.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
            for (dtype, step) in [(DType::F16, 1.0 / 2048.0), (DType::BF16, 1.0 / 256.0)] {
                let options = DecodeOptions { max_tokens: 3, cache_dtype: Some(dtype), ..Default::default() };
                let decode = Decode::new(&*model, &ids, options);
                if !<Inner<B> as KernelBackend>::reads_cache(&device, dtype) {
                    let problem = decode.err().expect("no such cache here").to_string();
                    assert!(problem.contains(dtype.name()) && problem.contains("leave"), "{problem}");
                    continue;
                }
                assert_eq!(decode.unwrap().count(), 3);
                // It grows on the way.
                let cached = logits_through(&*model, model.new_cache_in(1, 2, dtype), &ids, 5);
                let error = cached.iter().zip(&whole).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(error > 0.0 && error <= 8.0 * step * largest, "{name} {dtype:?}: {error} of {largest}");
            }
        }
    }
}

contract! {
    fn packed_weights_decode_what_one_pass_computes<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            for format in [Format::Q8, Format::Q4] {
                // Where there is no kernel for the blocks, they would be values like any other.
                let has_kernel = <Inner<B> as KernelBackend>::reads_weights(&device, format.dtype(BLOCK));
                let policy = if has_kernel { DTypePolicy::Pack(format) } else { DTypePolicy::Auto };
                let checkpoint = Checkpoint::open(&golden.folder).unwrap();
                let model = load_causal_lm::<Inner<B>>(&checkpoint, policy, &device).unwrap();
                let ids = golden.rows("single.input_ids").remove(0);
                let whole = logits(&*model, std::slice::from_ref(&ids));
                // Each row of a product depends on that row alone. Only attention sums in another order, whose last bit may take an
                // activation to the next of its 255 values: single logits move by that, all of them together hardly.
                let length = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
                for chunk in [1, 5] {
                    let cached = cached_logits(&*model, &ids, chunk);
                    let apart = length(&mut cached.iter().zip(&whole).map(|(a, b)| a - b));
                    let all = length(&mut whole.iter().copied());
                    assert!(apart < 5e-3 * all, "{name} {format:?} by {chunk}: {apart} apart, of {all}");
                }
            }
        }
    }
}

contract! {
    fn a_batch_equals_each_sequence_alone<B>(device) {
        for name in DECODERS {
            let golden = Golden::open(name);
            let model = golden.load::<Inner<B>>(&device);
            let sequences: Vec<Vec<u32>> = vec![vec![5, 9, 200], vec![77], (0..40).map(|i| i * 7 % 512).collect()];
            let together = logits(&*model, &sequences);
            let alone: Vec<f32> = sequences.iter().flat_map(|ids| logits(&*model, std::slice::from_ref(ids))).collect();
            assert_near(&together, &alone, 1e-4, 1e-4, name);
        }
    }
}

contract! {
    fn sequences_in_a_cache_do_not_see_each_other<B>(device) {
        let golden = Golden::open("qwen3-tiny");
        let model = golden.load::<Inner<B>>(&device);
        let vocabulary = model.facts().vocabulary;
        let (first, second) = (vec![3u32, 1, 4, 1, 5], vec![2u32, 7, 1]);
        let mut cache = model.new_cache(2, 4);
        let tokens = Sequences::whole(&[&first[..4], &second[..2]], &device);
        model.hidden(&tokens, Some(&mut cache));
        let tokens = Sequences::new(&[first[4], second[2]], Segments::continuing([(1, 4), (1, 2)]), &device);
        let step = floats(model.head(model.hidden(&tokens, Some(&mut cache))));
        let last = |ids: &[u32]| logits(&*model, &[ids.to_vec()])[(ids.len() - 1) * vocabulary..].to_vec();
        assert_near(&step, &[last(&first), last(&second)].concat(), 1e-4, 1e-4, "two slots");
    }
}

contract! {
    fn decoding_on_autodiff_itself_is_refused<B>(device) {
        let model = Golden::open("qwen2-tiny").load::<B>(&device);
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Decode::new(&*model, &[1], DecodeOptions::default()).map(|_| ())
        }));
        assert!(refused.is_err());
    }
}
