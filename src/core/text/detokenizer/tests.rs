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
