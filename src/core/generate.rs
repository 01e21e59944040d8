//! Decoding as text: whole characters as they become certain, stop strings, and a session that a conversation continues from.

use firebrick_backend::KernelBackend;

use crate::cache::KvCache;
use crate::decode::{Decode, DecodeOptions, FinishReason, Token};
use crate::error::Result;
use crate::model::CausalLm;
use crate::text::{Detokenizer, Tokenizer};

/// A token and the text that became certain with it. Pieces concatenated are the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// New text, empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// The token.
    pub token: Token,
}

/// What a conversation has computed so far: the cache, and the tokens it holds.
pub struct Session<B: KernelBackend> {
    cache: KvCache<B>,
    tokens: Vec<u32>,
    model: u64,
}

impl<B: KernelBackend> Session<B> {
    /// The number of the model that computed it, as [`Generation::of_model`] was told; 0 if it was not.
    pub fn model(&self) -> u64 {
        self.model
    }
}

/// An answer in the making, a piece for each token.
pub struct Generation<'m, B: KernelBackend> {
    decode: Decode<'m, B>,
    detokenizer: Detokenizer<'m>,
    stop: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    finished: bool,
    model: u64,
}

impl<'m, B: KernelBackend> Generation<'m, B> {
    /// Generates after `prompt`, up to the first of `stop`. A `session` of an earlier answer by the same model, with the same adapter, saves what
    /// the prompts have in common; it keeps the dtype of its cache.
    ///
    /// # Errors
    /// As [`Decode::new`].
    pub fn new(
        model: &'m dyn CausalLm<B>,
        tokenizer: &'m Tokenizer,
        prompt: &[u32],
        options: DecodeOptions,
        stop: &[String],
        session: Option<Session<B>>,
    ) -> Result<Self> {
        let decode = match session {
            None => Decode::new(model, prompt, options)?,
            Some(Session { mut cache, tokens, .. }) => {
                let common = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
                cache.truncate(0, common);
                Decode::with_cache(model, cache, prompt, options)?
            }
        };
        let stop = stop.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Ok(Self {
            decode,
            detokenizer: tokenizer.detokenizer(true),
            stop,
            held: String::new(),
            finished: false,
            model: 0,
        })
    }

    /// With a number for the model and its adapter, which [`Session::model`] tells later.
    pub fn of_model(mut self, model: u64) -> Self {
        self.model = model;
        self
    }

    /// Ends the answer here and keeps what was computed.
    pub fn into_session(self) -> Session<B> {
        let (cache, tokens) = self.decode.into_cache();
        Session { cache, tokens, model: self.model }
    }

    /// The whole answer at once.
    ///
    /// # Errors
    /// The first one that a piece has.
    pub fn into_text(self) -> Result<String> {
        self.map(|piece| Ok(piece?.text)).collect()
    }

    fn piece(&mut self, mut token: Token) -> Result<Piece> {
        // An end token has no text, even where the tokenizer does not call it special.
        if token.finish != Some(FinishReason::Stop) {
            self.held += &self.detokenizer.push(token.id)?;
        }
        if token.finish.is_some() {
            self.held += &self.detokenizer.finish()?;
        }
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let certain = match found {
            Some(at) => {
                token.finish = Some(FinishReason::Stop);
                at
            }
            None if token.finish.is_some() => self.held.len(),
            None => self.held.len() - possible_stop(&self.held, &self.stop),
        };
        self.finished = token.finish.is_some();
        let text = self.held.drain(..certain).collect();
        Ok(Piece { text, token })
    }
}

impl<B: KernelBackend> Iterator for Generation<'_, B> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let piece = self.decode.next()?.and_then(|token| self.piece(token));
        self.finished |= piece.is_err();
        Some(piece)
    }
}

/// Length of the longest end of `text` that begins one of the stop strings.
fn possible_stop(text: &str, stop: &[String]) -> usize {
    let begins = |stop: &String| {
        let lengths = stop.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
        lengths.filter(|&length| text.ends_with(&stop[..length])).max().unwrap_or(0)
    };
    stop.iter().map(begins).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::possible_stop;

    #[test]
    fn text_that_may_begin_a_stop_string_is_held_back() {
        let stop = ["</s>".to_owned(), "ende".to_owned()];
        assert_eq!(possible_stop("hello", &stop), 0);
        assert_eq!(possible_stop("hello <", &stop), 1);
        assert_eq!(possible_stop("hello </s", &stop), 3);
        assert_eq!(possible_stop("das ende", &["endet".to_owned()]), 4);
        assert_eq!(possible_stop("é", &["éa".to_owned()]), 2);
    }
}
