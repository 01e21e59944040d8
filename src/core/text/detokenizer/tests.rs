//! Pieces against the decoded whole.

use rand::{RngExt, SeedableRng};

use crate::text::Tokenizer;
use crate::text::tokenizer::tests::folder;

fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer(skip_special);
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
    pieces.push(detokenizer.finish().unwrap());
    pieces
}

#[test]
fn joined_pieces_equal_the_decoded_whole_for_random_ids() {
    for name in ["qwen2-tiny", "rust-tiny"] {
        let tokenizer = Tokenizer::from_folder(&folder(name)).unwrap();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        // Some ids are past the vocabulary; the low ones are mostly single bytes.
        for bound in [tokenizer.vocabulary_size() as u32 + 50, 260] {
            for round in 0..200 {
                let ids: Vec<u32> = (0..round).map(|_| random.random_range(0..bound)).collect();
                for skip in [true, false] {
                    assert_eq!(
                        pieces(&tokenizer, &ids, skip).concat(),
                        tokenizer.decode(&ids, skip).unwrap(),
                        "{ids:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_character_comes_whole_with_its_last_token() {
    let tokenizer = Tokenizer::from_folder(&folder("qwen2-tiny")).unwrap();
    let byte = |byte: char| tokenizer.token_id(&byte.to_string()).unwrap();
    // The four bytes of an emoji as the byte-level alphabet writes them.
    let emoji: Vec<u32> = "ðŁĺĢ".chars().map(byte).collect();
    assert_eq!(pieces(&tokenizer, &emoji, true), ["", "", "", "😀", ""]);
    assert_eq!(pieces(&tokenizer, &emoji[..3], true).concat(), "\u{fffd}");
    // An interrupted character and a text after it.
    let broken = [emoji[0], emoji[1], byte('a'), byte('b')];
    assert_eq!(pieces(&tokenizer, &broken, true), ["", "", "\u{fffd}a", "b", ""]);
    for round in 0..5 {
        let ids = [&emoji[..round.min(4)], &tokenizer.encode("naïve 東京 🙂", true).unwrap()].concat();
        let all = pieces(&tokenizer, &ids, true);
        assert_eq!(all.concat(), tokenizer.decode(&ids, true).unwrap());
    }
}

#[test]
fn special_tokens_are_skipped_when_asked() {
    let tokenizer = Tokenizer::from_folder(&folder("rust-tiny")).unwrap();
    let ids = tokenizer.encode("a<|im_end|>b", true).unwrap();
    assert_eq!(pieces(&tokenizer, &ids, true), ["a", "", "b", ""]);
    assert_eq!(pieces(&tokenizer, &ids, false), ["a", "<|im_end|>", "b", ""]);
}

#[test]
fn finish_leaves_the_detokenizer_as_new() {
    let tokenizer = Tokenizer::from_folder(&folder("qwen2-tiny")).unwrap();
    let mut detokenizer = tokenizer.detokenizer(true);
    let lead = tokenizer.token_id("ð").unwrap();
    assert_eq!(detokenizer.push(lead).unwrap(), "");
    assert_eq!(detokenizer.finish().unwrap(), "\u{fffd}");
    assert_eq!(detokenizer.finish().unwrap(), "");
    assert_eq!(detokenizer.push(tokenizer.token_id("x").unwrap()).unwrap(), "x");
}

#[test]
fn the_window_stays_bounded_whatever_the_bytes() {
    let tokenizer = Tokenizer::from_folder(&folder("qwen2-tiny")).unwrap();
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    let (lead, rest) = (id("ð"), id("Ł"));
    for pattern in [vec![rest], vec![lead], vec![lead, rest, rest], vec![id("x")], vec![rest, lead]] {
        let ids: Vec<u32> = pattern.iter().copied().cycle().take(500).collect();
        let mut detokenizer = tokenizer.detokenizer(true);
        let mut text = String::new();
        for &id in &ids {
            text += &detokenizer.push(id).unwrap();
            assert!(detokenizer.window.len() <= super::WINDOW + 1);
        }
        text += &detokenizer.finish().unwrap();
        assert_eq!(text, tokenizer.decode(&ids, true).unwrap(), "{pattern:?}");
    }
}

/// Byte tokens as Llama's tokenizer has them.
const FALLBACK: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "byte_fallback": true, "merges": [], "unk_token": "<0xE6>",
        "vocab": {"<0xE6>": 0, "<0x9C>": 1, "<0xAC>": 2, "▁a": 3, "b": 4}}}"#;

#[test]
fn byte_fallback_and_stripped_spaces_stream_as_they_decode() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), FALLBACK).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(pieces(&tokenizer, &[3, 3, 4], true), ["a", " a", "b", ""]);
    assert_eq!(pieces(&tokenizer, &[3, 0, 1, 2, 0, 1, 2, 4], true), ["a", "", "", "本", "", "", "本", "b", ""]);
    assert_eq!(pieces(&tokenizer, &[0, 1, 4, 0], true).concat(), tokenizer.decode(&[0, 1, 4, 0], true).unwrap());
    // A long run of bytes that are no characters comes, and the text after it.
    let run = [vec![1; 60], vec![3]].concat();
    assert_eq!(pieces(&tokenizer, &run, true).concat(), tokenizer.decode(&run, true).unwrap());
}
