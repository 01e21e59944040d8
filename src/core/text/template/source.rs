//! The `{% generation %}` blocks of transformers, which mark the assistant's text and print their body. The engine
//! has no such tag, so the source is rewritten before it is compiled. Compiling does not live here.

use crate::error::{Error, Result};

/// `source` with `{% generation %}` as `{% if true %}` and `{% endgeneration %}` as `{% endif %}`, which print their body and
/// treat the white space around them alike. Comments, strings and raw blocks stay as they are.
pub(super) fn without_generation_tags(source: &str) -> Result<String> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out += before;
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => tag_length(tag, "}}")?,
            Some(b'%') => {
                let length = tag_length(tag, "%}")?;
                match tag_name(&tag[..length]) {
                    "raw" => raw_length(tag, length),
                    "generation" => {
                        out += &tag[..length].replacen("generation", "if true", 1);
                        rest = &tag[length..];
                        continue;
                    }
                    "endgeneration" => {
                        out += &tag[..length].replacen("endgeneration", "endif", 1);
                        rest = &tag[length..];
                        continue;
                    }
                    _ => length,
                }
            }
            _ => 1,
        };
        out += &tag[..length];
        rest = &tag[length..];
    }
    out += rest;
    Ok(out)
}

/// Bytes of the tag that `tag` begins with, through `close`; what is inside string literals closes nothing.
fn tag_length(tag: &str, close: &str) -> Result<usize> {
    let bytes = tag.as_bytes();
    let (mut at, mut quote, mut depth) = (2, None, 0_usize);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(bytes[at]),
            // `}}` may also close two dictionaries.
            (None, b'{') => depth += 1,
            (None, b'}') if depth > 0 => depth -= 1,
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return Ok(at + close.len()),
            (None, _) => {}
        }
        at += 1;
    }
    Err(Error::Template(format!("a tag is never closed by `{close}`")))
}

/// The first word of a block tag.
fn tag_name(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    &inner[..inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len())]
}

/// Bytes from a `{% raw %}` tag of `opening` bytes through its `{% endraw %}`.
fn raw_length(tag: &str, opening: usize) -> usize {
    let mut at = opening;
    while let Some(found) = tag[at..].find("{%") {
        at += found;
        // In `{%}` the sign that opens does not close.
        let Some(end) = tag[at + 2..].find("%}") else { break };
        if tag_name(&tag[at..at + 2 + end]) == "endraw" {
            return at + 2 + end + 2;
        }
        at += 2;
    }
    tag.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_an_if_with_their_whitespace_control() {
        let source = "a\n{%- generation -%}\n x {%+ endgeneration %}";
        assert_eq!(without_generation_tags(source).unwrap(), "a\n{%- if true -%}\n x {%+ endif %}");
        assert_eq!(without_generation_tags("{%generation%}x{%endgeneration%}").unwrap(), "{%if true%}x{%endif%}");
    }

    #[test]
    fn text_that_only_looks_like_a_generation_tag_stays() {
        for source in [
            "{{ '{% generation %}' }}",
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set generation = '%}{% generation %}' %}",
            "{ % generation %} { {",
            "{{ {'a': {'b': 1}}['a'] }}",
            "{{ \"\\\"}}\" }} é {",
            "{% raw %}{%}{% generation %}{% endraw %}",
            "{% raw %}{%}",
        ] {
            assert_eq!(without_generation_tags(source).unwrap(), source);
        }
    }

    #[test]
    fn an_unclosed_tag_is_an_error() {
        assert!(without_generation_tags("{% if '%}").is_err());
        assert!(without_generation_tags("{{ x }").is_err());
    }
}
