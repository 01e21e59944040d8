//! Decoding tokens as they come, never half a character. Decoding a whole sequence is the tokenizer's.

use super::Tokenizer;
use crate::error::Result;

/// Tokens kept at most before the window is cut, and kept after the cut. A character has at most four bytes and a
/// token at least one, so what is kept determines its own tail.
const WINDOW: usize = 24;
const KEPT: usize = 12;
/// An unfinished character shows as at most three replacement characters: one per byte where the decoder falls back
/// to bytes, one in all where it is byte-level.
const UNFINISHED: usize = 3;

/// Turns token ids into text one by one. The pieces joined are the decoded whole.
///
/// Each push decodes a bounded window of the latest tokens, not the whole sequence. The joined pieces equal
/// [`Tokenizer::decode`] of all ids for every decoder that never changes the text of finished characters.
#[derive(Debug)]
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// The latest tokens that have text; those before `start` are only context.
    window: Vec<u32>,
    start: usize,
    /// The part of the window's text that was handed out.
    given: String,
}

impl<'t> Detokenizer<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), start: 0, given: String::new() }
    }

    /// The text that `id` completes; empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.is_silent(id, self.skip_special) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.decode(&self.window)?;
        let Some(rest) = text.strip_prefix(self.given.as_str()) else {
            // A byte-fallback decoder shows its whole run of byte tokens as invalid while one is unfinished: wait for
            // the rest, and if it never comes let the context go.
            if self.window.len() > WINDOW {
                self.window.drain(..self.start);
                self.start = 0;
                self.given.clear();
            }
            return Ok(String::new());
        };
        let piece = settled(rest).to_owned();
        if piece.len() == rest.len() {
            // Nothing is held back: the tokens since the last such point are the context of the next.
            self.window.drain(..self.start);
            self.start = self.window.len();
            self.given = self.decode(&self.window)?;
        } else {
            self.given.push_str(&piece);
            self.cut(&rest[piece.len()..])?;
        }
        Ok(piece)
    }

    /// What is still held back, as it decodes; the detokenizer is then as new.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.decode(&self.window)?;
        let rest = match text.strip_prefix(self.given.as_str()) {
            Some(rest) => rest.to_owned(),
            None => self.decode(&self.window[self.start..])?,
        };
        self.window.clear();
        self.start = 0;
        self.given.clear();
        Ok(rest)
    }

    /// Bounds the window where characters never end at a token's end. UTF-8 finds its characters again from any byte,
    /// so a cut changes only text that was handed out; `held` is what was not.
    fn cut(&mut self, held: &str) -> Result<()> {
        if self.window.len() <= WINDOW {
            return Ok(());
        }
        let kept = self.window[self.window.len() - KEPT..].to_vec();
        let text = self.decode(&kept)?;
        if let Some(given) = text.strip_suffix(held) {
            self.given = given.to_owned();
            self.window = kept;
            self.start = 0;
        }
        Ok(())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, self.skip_special)
    }
}

/// `text` without the replacement characters at its end that may yet become a character.
fn settled(mut text: &str) -> &str {
    for _ in 0..UNFINISHED {
        match text.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(shorter) => text = shorter,
            None => break,
        }
    }
    text
}

#[cfg(test)]
mod tests;
