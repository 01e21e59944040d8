//! Text as tokens come: a token's text is given out once no later token can change it.

use super::Tokenizer;
use crate::error::Result;

/// Incremental decoding. The pieces concatenated are the decoding of all tokens.
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// Tokens before this one are out of reach: what they decode to cannot change any more.
    window: usize,
    /// Tokens before this one are given out.
    given: usize,
}

impl<'t> Detokenizer<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), window: 0, given: 0 }
    }

    /// Takes a token and gives out the text that became certain, which is never half a character.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.new_text()?;
        // A character cut in the middle decodes to U+FFFD: wait for the rest of it.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        // Two windows: the last given tokens stay as context, for a decoder may treat the first token of a text apart.
        self.window = self.given;
        self.given = self.ids.len();
        if self.window > 0 {
            self.ids.drain(..self.window);
            self.given -= self.window;
            self.window = 0;
        }
        Ok(text)
    }

    /// Gives out what is left, broken characters as U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.new_text()?;
        self.window = self.ids.len();
        self.given = self.ids.len();
        Ok(text)
    }

    fn new_text(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.window..self.given], self.skip_special)?;
        let after = self.tokenizer.decode(&self.ids[self.window..], self.skip_special)?;
        Ok(after.get(before.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = tokenizer.detokenizer(false);
        let mut text = String::new();
        for &id in ids {
            let piece = stream.push(id).unwrap();
            assert!(!piece.ends_with('\u{fffd}'));
            text += &piece;
        }
        text + &stream.finish().unwrap()
    }

    #[test]
    fn pieces_concatenate_to_the_whole_text() {
        for folder in ["tests/goldens/qwen2-tiny", "examples/tiny/rust-tiny"] {
            let tokenizer = Tokenizer::from_folder(&Path::new(REPOSITORY).join(folder)).unwrap();
            let text = "naïve 東京 🙂👩‍👩‍👧 e\u{301} fin\n\n  x";
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids, false).unwrap());
            let mut random = ChaCha8Rng::seed_from_u64(7);
            for _ in 0..200 {
                let size = tokenizer.vocabulary_size() as u32;
                let ids: Vec<u32> = (0..40).map(|_| random.random_range(0..size + 3)).collect();
                assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids, false).unwrap(), "{ids:?}");
            }
        }
    }
}
