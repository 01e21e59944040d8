//! Rows good and bad.

use std::io::Write;

use super::*;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/qwen2-tiny"))).unwrap()
}

fn load(content: impl AsRef<[u8]>, options: DataOptions) -> Result<Dataset> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    Dataset::load(file.path(), &tokenizer(), &options)
}

const TWO_TURNS: &str = r#"{"prompt": "Sort a list.", "completion": "sorted(x)", "extra": 1}"#;

#[test]
fn completions_are_two_turns_and_their_prompt_can_be_masked() {
    let tokenizer = tokenizer();
    let plain = load(TWO_TURNS, DataOptions::default()).unwrap();
    let messages = [Message::user("Sort a list."), Message::assistant("sorted(x)")];
    let whole = tokenizer.chat(&messages, &TemplateOptions::default()).unwrap();
    let prompt_options = TemplateOptions { add_generation_prompt: true, ..Default::default() };
    let prompt = tokenizer.chat(&messages[..1], &prompt_options).unwrap();
    assert_eq!(plain.examples()[0].tokens, whole);
    assert_eq!(plain.weighted_tokens(), whole.len() - 1);

    let masked = load(TWO_TURNS, DataOptions { mask_prompt: true, ..Default::default() }).unwrap();
    assert_eq!(masked.examples()[0].tokens, whole);
    assert_eq!(masked.weighted_tokens(), whole.len() - prompt.len());
    assert_eq!(masked.examples()[0].weights.iter().position(|&weight| weight != 0.0), Some(prompt.len()));

    let chat =
        r#"{"messages": [{"role": "user", "content": "Sort a list."}, {"role": "assistant", "content": "sorted(x)"}]}"#;
    assert_eq!(
        load(chat, DataOptions { mask_prompt: true, ..Default::default() }).unwrap().examples(),
        masked.examples()
    );
}

#[test]
fn text_ends_in_eos_once() {
    let tokenizer = tokenizer();
    for text in ["abc", "abc<|im_end|>"] {
        let row = format!("{{\"text\": \"{text}\"}}");
        let dataset = load(row, DataOptions::default()).unwrap();
        let mut expected = tokenizer.encode("abc", true).unwrap();
        expected.push(tokenizer.eos_token().unwrap());
        assert_eq!(dataset.examples()[0].tokens, expected);
    }
    let error = load("{\"text\": \"a\"}", DataOptions { mask_prompt: true, ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains(":1: `text` has no prompt"), "{error}");
}

#[test]
fn bom_crlf_and_blank_lines_are_no_rows() {
    let content = format!("\u{feff}{TWO_TURNS}\r\n\r\n  \n{TWO_TURNS}");
    let dataset = load(content, DataOptions::default()).unwrap();
    assert_eq!(dataset.report().rows, 2);
    assert_eq!(dataset.examples().iter().map(|example| example.line).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn each_bad_row_is_named_by_line_and_can_be_skipped() {
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(17 << 20));
    let bad: [(&[u8], &str); 10] = [
        (b"{", "not JSON"),
        (b"[1]", "a list"),
        (b"\"x\"", "a string"),
        (b"{\"prompt\": \"x\"}", "neither"),
        (b"{\"prompt\": 1, \"completion\": \"x\"}", "`prompt` is not a string"),
        (b"{\"prompt\": \"\\ud800\", \"completion\": \"x\"}", "not JSON"),
        (b"{\"prompt\": \"\xff\", \"completion\": \"x\"}", "not UTF-8"),
        (b"{\"text\": \"x\"}", "the rows before it"),
        (b"{\"prompt\": null, \"completion\": \"x\"}", "not a string"),
        (long.as_bytes(), "longer than"),
    ];
    for (row, problem) in bad {
        let content = [TWO_TURNS.as_bytes(), row, TWO_TURNS.as_bytes()].join(&b"\n"[..]);
        let error = load(&content, DataOptions::default()).unwrap_err().to_string();
        assert!(error.contains(":2: ") && error.contains(problem), "{problem}: {}", error.get(..200).unwrap_or(&error));
        let dataset = load(&content, DataOptions { bad_rows: BadRows::Skip, ..Default::default() }).unwrap();
        assert_eq!((dataset.examples().len(), dataset.report().skipped.len()), (2, 1));
        assert_eq!(dataset.report().skipped[0].0, 2);
    }
}

#[test]
fn over_long_rows_follow_the_policy() {
    let row = "{\"text\": \"1 2 3 4 5 6 7 8 9\"}";
    let length = load(row, DataOptions::default()).unwrap().examples()[0].tokens.len();
    let with = |max_tokens, over_long| load(row, DataOptions { max_tokens, over_long, ..Default::default() });
    for limit in [length, length + 1] {
        let report = with(limit, OverLong::Truncate).unwrap().report().clone();
        assert_eq!((report.truncated, report.dropped, report.split), (0, 0, 0));
    }
    let truncated = with(length - 1, OverLong::Truncate).unwrap();
    assert_eq!((truncated.examples()[0].tokens.len(), truncated.report().truncated), (length - 1, 1));
    let split = with(4, OverLong::Split).unwrap();
    assert_eq!(split.report().split, 1);
    assert_eq!(split.examples().len(), (length.div_ceil(4)) - usize::from(length % 4 == 1));
    assert!(split.examples().iter().all(|example| example.weights[0] == 0.0 && example.tokens.len() <= 4));
    assert!(with(length - 1, OverLong::Drop).unwrap_err().to_string().contains("1 too long"));
}

#[test]
fn rows_without_a_token_that_counts_are_left_out_and_counted() {
    let content = format!("{TWO_TURNS}\n{{\"prompt\": \"a\", \"completion\": \"\"}}");
    let options = DataOptions { mask_prompt: true, max_tokens: 12, ..Default::default() };
    let error = load(&content, options).unwrap_err().to_string();
    assert!(error.contains("without a token that counts"), "{error}");
    assert!(load("", DataOptions::default()).unwrap_err().to_string().contains("0 rows"));
}

#[test]
fn the_order_is_a_shuffle_that_follows_from_seed_and_epoch() {
    let order = epoch_order(100, 3, 0);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    assert_eq!(order, epoch_order(100, 3, 0));
    assert_ne!(order, epoch_order(100, 3, 1));
    assert_ne!(order, epoch_order(100, 4, 0));
}
