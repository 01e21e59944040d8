//! A row's content as token ids, and how many of them are prompt. Limits on their number are not known here.

use super::form::{Form, Row};
use crate::error::Error;
use crate::text::{Message, TemplateOptions, Tokenizer};
use serde_json::Value;

/// A row as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) tokens: Vec<u32>,
    /// Tokens at the start that carry no weight.
    pub(super) offset: usize,
}

/// Whether rows of `form` can be made into tokens at all; otherwise why not.
pub(super) fn check(form: Form, tokenizer: &Tokenizer, mask_prompt: bool) -> Result<(), String> {
    let (template, end) = (tokenizer.template().is_some(), tokenizer.eos_token().is_some());
    let problem = match form {
        Form::Text if mask_prompt => "rows of `text` have no prompt to mask; leave mask_prompt out",
        Form::Messages if !template => "rows of `messages` need a chat template, and the model has none",
        Form::Text if !end => "rows of `text` end in the end token, and the model's tokenizer names none",
        Form::Completion if !template && !end => {
            "without a chat template rows end in the end token, and the model's tokenizer names none"
        }
        _ => return Ok(()),
    };
    Err(problem.to_owned())
}

/// The tokens of a row that has passed [`check`], or what is wrong with it.
pub(super) fn tokens(row: Row, tokenizer: &Tokenizer, mask_prompt: bool) -> Result<Tokens, String> {
    let problem = |error: Error| error.to_string();
    match row {
        Row::Text(text) => {
            let mut tokens = tokenizer.encode(&text, true).map_err(problem)?;
            end(&mut tokens, tokenizer);
            Ok(Tokens { tokens, offset: 0 })
        }
        Row::Messages { messages, tools } => chat(&messages, tools, tokenizer, mask_prompt),
        Row::Completion { prompt, completion, tools } if tokenizer.template().is_some() => {
            chat(&[Message::user(prompt), Message::assistant(completion)], tools, tokenizer, mask_prompt)
        }
        Row::Completion { tools: Some(_), .. } => {
            Err("`tools` need a chat template, and the model has none".to_owned())
        }
        Row::Completion { prompt, completion, tools: None } => {
            let mut tokens = tokenizer.encode(&format!("{prompt}{completion}"), true).map_err(problem)?;
            end(&mut tokens, tokenizer);
            let offset = if mask_prompt {
                common_prefix(&tokenizer.encode(&prompt, true).map_err(problem)?, &tokens)
            } else {
                0
            };
            Ok(Tokens { tokens, offset })
        }
    }
}

fn chat(
    messages: &[Message],
    tools: Option<Vec<Value>>,
    tokenizer: &Tokenizer,
    mask_prompt: bool,
) -> Result<Tokens, String> {
    let mut options = TemplateOptions { add_generation_prompt: false, tools, ..TemplateOptions::default() };
    let tokens = tokenizer.chat(messages, &options).map_err(|error| error.to_string())?;
    let offset = match messages {
        _ if !mask_prompt => 0,
        [] | [_] => return Err("with mask_prompt a row has a message before the last".to_owned()),
        [prompt @ .., last] => {
            options.add_generation_prompt = last.role == "assistant";
            common_prefix(&tokenizer.chat(prompt, &options).map_err(|error| error.to_string())?, &tokens)
        }
    };
    Ok(Tokens { tokens, offset })
}

/// Where tokens merge across the prompt's end, or a template writes earlier turns otherwise than the last, the prompt alone is not how
/// the whole begins: then only what they share is prompt.
fn common_prefix(prompt: &[u32], whole: &[u32]) -> usize {
    prompt.iter().zip(whole).take_while(|(prompt, whole)| prompt == whole).count()
}

fn end(tokens: &mut Vec<u32>, tokenizer: &Tokenizer) {
    let end = tokenizer.eos_token();
    if tokens.last().copied() != end {
        tokens.extend(end);
    }
}
