//! Requests no model can answer: prompts, ids, sampling values, and logits that are not numbers.

use firebrick::KernelBackend;
use firebrick::core::decode::{Decode, DecodeOptions, FinishReason, Token};
use firebrick::core::error::Error;
use firebrick::core::model::CausalLm;
use firebrick::core::sample::Sampling;
use firebrick::core::text::Message;
use firebrick::models::{GenerateOptions, LanguageModel};
use serde_json::json;

use crate::contract;
use crate::damage::{Stored, copy, edit_tensors, load, refused, says, set};
use crate::support::{DECODERS, Inner};

fn decode<B: KernelBackend>(model: &dyn CausalLm<B>, prompt: &[u32], max_tokens: usize) -> Result<Vec<Token>, Error> {
    Decode::new(model, prompt, DecodeOptions { max_tokens, ..DecodeOptions::default() })?.collect()
}

contract! {
    fn an_empty_prompt_is_an_error<B>(device) {
        let model = LanguageModel::<Inner<B>>::load(copy("qwen2-tiny").path(), &device).unwrap();
        let error = refused(decode(model.model(), &[], 1), "no tokens");
        assert!(matches!(error, Error::EmptyPrompt), "{error:?}");
        let error = refused(model.generate("", &GenerateOptions::greedy()), "no text");
        assert!(matches!(error, Error::EmptyPrompt), "{error:?}");
    }
}

contract! {
    fn a_prompt_may_fill_the_context_and_not_more<B>(device) {
        for name in DECODERS {
            let folder = copy(name);
            set(folder.path(), "max_position_embeddings", &json!(40));
            let model = load::<Inner<B>>(folder.path(), &device).unwrap();
            let prompt: Vec<u32> = (0..41).collect();
            // Prompt tokens → new ones: the last position still gives one.
            for (tokens, expected) in [(38, 3), (39, 2), (40, 1)] {
                let new = decode(&*model, &prompt[..tokens], usize::MAX).unwrap();
                assert_eq!(new.len(), expected, "{name}: a prompt of {tokens}");
                let finishes: Vec<_> = new.iter().map(|token| token.finish).collect();
                assert!(finishes[..expected - 1].iter().all(Option::is_none), "{name}: {finishes:?}");
                assert_eq!(finishes[expected - 1], Some(FinishReason::Length), "{name}");
            }
            let error = refused(decode(&*model, &prompt, 1), "41 of 40");
            assert!(matches!(error, Error::PromptTooLong { tokens: 41, limit: 40 }), "{error:?}");
        }
    }
}

contract! {
    fn a_text_that_reaches_the_end_of_the_context_ends_with_length<B>(device) {
        let folder = copy("qwen2-tiny");
        set(folder.path(), "max_position_embeddings", &json!(24));
        let model = LanguageModel::<Inner<B>>::load(folder.path(), &device).unwrap();
        let prompt = [5, 6, 7, 8];
        let options = GenerateOptions::greedy().max_tokens(usize::MAX);
        let pieces: Result<Vec<_>, Error> = model.generate_from(&prompt, &options, None).unwrap().collect();
        let pieces = pieces.unwrap();
        let last = pieces.last().unwrap().token.finish.unwrap();
        let ended = model.generation_config().eos_token_id.contains(&pieces.last().unwrap().token.id);
        assert!(!ended, "the golden model ends by itself: this test needs another prompt");
        assert_eq!((last.name(), pieces.len()), ("length", 24 - 4 + 1));
    }
}

contract! {
    fn prompts_of_megabytes_are_refused_in_bounded_time<B>(device) {
        let model = LanguageModel::<Inner<B>>::load(copy("qwen2-tiny").path(), &device).unwrap();
        let limit = model.model().facts().context;
        let begun = std::time::Instant::now();
        // Words take time in proportion: a tenth is enough of them.
        for (text, megabytes) in [("a ", 1), ("a", 10), (" ", 10), ("🦀", 10), ("\n", 10), ("\0", 10)] {
            let begun = std::time::Instant::now();
            match refused(model.generate(&text.repeat((megabytes << 20) / text.len()), &GenerateOptions::greedy()), text) {
                // Letters, spaces or signs without a break are refused before they are split into words.
                Error::Tokenizer(problem) => assert!(problem.contains("without a break"), "{text:?}: {problem}"),
                Error::PromptTooLong { tokens, limit: named } => assert!(named == limit && tokens > limit, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
            assert!(begun.elapsed().as_secs() < 20, "{text:?}: {:?}", begun.elapsed());
        }
        println!("a prompt of 1 MB and five of 10 MB were refused in {:?}", begun.elapsed());
        // White space is text like any other.
        for text in [" ", "\n\n", "\t \u{3000}"] {
            let options = GenerateOptions::greedy().max_tokens(2);
            assert!(model.generate(text, &options).unwrap().all(|piece| piece.is_ok()), "{text:?}");
        }
    }
}

contract! {
    fn any_part_of_an_answer_can_end_it_and_no_byte_more_is_streamed<B>(device) {
        let model = LanguageModel::<Inner<B>>::load(copy("qwen2-tiny").path(), &device).unwrap();
        let answer = |stop: &[&str]| {
            let stop = stop.iter().map(|&stop| stop.to_owned()).collect();
            let options = GenerateOptions { stop, ..GenerateOptions::greedy().max_tokens(24) };
            let pieces = model.generate_from(&[5, 6, 7, 8], &options, None).unwrap();
            pieces.map(|piece| piece.unwrap().text).collect::<String>()
        };
        let whole = answer(&[]);
        let places: Vec<usize> = whole.char_indices().map(|(at, _)| at).chain([whole.len()]).collect();
        assert!(places.len() > 20, "{whole:?}");
        // Pieces of one letter, and of some that no token has as a whole.
        for length in [1, 2, 5] {
            for part in places.windows(length + 1) {
                let stop = &whole[part[0]..part[length]];
                assert_eq!(answer(&["never said", stop]), whole[..whole.find(stop).unwrap()], "{stop:?}");
            }
        }
    }
}

contract! {
    fn an_id_outside_the_vocabulary_is_named<B>(device) {
        let model = load::<Inner<B>>(copy("qwen2-tiny").path(), &device).unwrap();
        decode(&*model, &[511], 1).unwrap();
        for id in [512, u32::MAX] {
            let error = refused(decode(&*model, &[1, id, 2], 1), "an unknown id");
            assert!(matches!(error, Error::UnknownToken { id: named, vocabulary: 512 } if named == id), "{error:?}");
        }
    }
}

contract! {
    fn absurd_sampling_values_are_refused_with_their_bounds<B>(device) {
        let model = load::<Inner<B>>(copy("qwen2-tiny").path(), &device).unwrap();
        let hostile = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1000.0];
        type Set = fn(f32) -> Sampling;
        let options: [(&str, Set); 6] = [
            ("temperature", |temperature| Sampling { temperature, ..Sampling::greedy() }),
            ("top_p", |p| Sampling { top_p: Some(p), ..Sampling::greedy() }),
            ("min_p", |p| Sampling { min_p: Some(p), ..Sampling::greedy() }),
            ("repetition_penalty", |p| Sampling { repetition_penalty: Some(p), ..Sampling::greedy() }),
            ("presence_penalty", |p| Sampling { presence_penalty: Some(p), ..Sampling::greedy() }),
            ("frequency_penalty", |p| Sampling { frequency_penalty: Some(p), ..Sampling::greedy() }),
        ];
        let check = |named: &str, sampling: Sampling| {
            let options = DecodeOptions { sampling, ..DecodeOptions::default() };
            let error = refused(Decode::new(&*model, &[1], options), named);
            assert!(matches!(&error, Error::OutOfBounds { name, .. } if *name == named), "{error:?}");
        };
        for (named, set) in options {
            hostile.iter().for_each(|value| check(named, set(*value)));
        }
        check("top_k", Sampling { top_k: Some(0), ..Sampling::greedy() });
        check("top_p", Sampling { top_p: Some(0.0), ..Sampling::greedy() });
        check("repetition_penalty", Sampling { repetition_penalty: Some(0.0), ..Sampling::greedy() });
        // More than there is of everything is no error.
        let sampling = Sampling { temperature: 100.0, top_k: Some(usize::MAX), seed: u64::MAX, ..Sampling::greedy() };
        let options = DecodeOptions { sampling, max_tokens: 3, logprobs: usize::MAX, ..DecodeOptions::default() };
        for token in Decode::new(&*model, &[1], options).unwrap() {
            assert_eq!(token.unwrap().top.len(), 512);
        }
        assert!(decode(&*model, &[1], 0).unwrap().is_empty());
    }
}

contract! {
    fn logits_that_are_not_numbers_end_the_answer_with_an_error<B>(device) {
        for value in [f32::NAN, f32::INFINITY] {
            let folder = copy("qwen2-tiny");
            edit_tensors(&folder.path().join("model.safetensors"), |tensors| {
                tensors.insert("model.norm.weight".into(), Stored::floats(&[64], value));
            });
            let model = load::<Inner<B>>(folder.path(), &device).unwrap();
            let mut answer = Decode::new(&*model, &[1, 2], DecodeOptions::default()).unwrap();
            let error = refused(answer.next().unwrap(), "NaN");
            assert!(matches!(error, Error::NotFinite { .. }), "{error:?}");
            assert!(answer.next().is_none(), "an answer goes on after its error");
            assert!(answer.generated().is_empty());
        }
    }
}

contract! {
    fn a_model_without_a_chat_template_cannot_chat<B>(device) {
        let folder = copy("qwen2-tiny");
        let path = folder.path().join("tokenizer_config.json");
        crate::damage::edit_json(&path, |config| drop(config.remove("chat_template")));
        let model = LanguageModel::<Inner<B>>::load(folder.path(), &device).unwrap();
        let error = refused(model.chat(&[Message::user("hi")], &GenerateOptions::greedy()), "no template");
        assert!(matches!(error, Error::Template(_)), "{error:?}");
        says(&error, &[folder.path().to_str().unwrap()]);
    }
}

contract! {
    fn a_tokenizer_that_is_none_is_refused_by_name<B>(device) {
        for bytes in [&b""[..], b"{}", b"[1]", b"{\"model\": {\"type\": \"BPE\"}}", b"\xff\xfe", b"\x80\x02}q\x00."] {
            let folder = copy("qwen2-tiny");
            let path = folder.path().join("tokenizer.json");
            std::fs::write(&path, bytes).unwrap();
            let error = refused(LanguageModel::<Inner<B>>::load(folder.path(), &device).map(drop), "no tokenizer");
            assert!(matches!(&error, Error::Malformed { path: named, .. } if *named == path), "{error:?}");
            std::fs::remove_file(&path).unwrap();
            let error = refused(LanguageModel::<Inner<B>>::load(folder.path(), &device).map(drop), "nothing");
            assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error:?}");
        }
    }
}
