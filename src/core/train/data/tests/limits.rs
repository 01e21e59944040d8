//! Examples against the limit on their tokens, and rows with nothing to learn.

use super::*;

/// Rows of `text`, which with their end token have as many tokens as asked: each ` a` is one.
fn rows(tokens: &[usize]) -> String {
    tokens.iter().map(|&tokens| format!("{{\"text\": \"{}\"}}\n", " a".repeat(tokens - 1))).collect()
}

fn limited(over_long: OverLong) -> DataOptions {
    DataOptions { max_tokens: 8, over_long, ..DataOptions::default() }
}

fn lengths(dataset: &Dataset) -> Vec<(usize, usize)> {
    dataset.examples().iter().map(|example| (example.line, example.tokens.len())).collect()
}

#[test]
fn truncation_keeps_the_start_and_is_counted() {
    let whole = load(rows(&[7, 8, 9, 80]), &DataOptions::default()).unwrap();
    assert_eq!(lengths(&whole), [(1, 7), (2, 8), (3, 9), (4, 80)]);
    let dataset = load(rows(&[7, 8, 9, 80]), &limited(OverLong::Truncate)).unwrap();
    assert_eq!(lengths(&dataset), [(1, 7), (2, 8), (3, 8), (4, 8)]);
    for (whole, cut) in whole.examples().iter().zip(dataset.examples()) {
        assert_eq!(cut.tokens, whole.tokens[..cut.tokens.len()]);
    }
    assert_eq!(*dataset.report(), LoadReport { rows: 4, truncated: 2, ..LoadReport::default() });
}

#[test]
fn dropped_rows_are_counted() {
    let dataset = load(rows(&[7, 8, 9, 80]), &limited(OverLong::Drop)).unwrap();
    assert_eq!(lengths(&dataset), [(1, 7), (2, 8)]);
    assert_eq!(*dataset.report(), LoadReport { rows: 4, dropped: 2, ..LoadReport::default() });
    let message = load(rows(&[9]), &limited(OverLong::Drop)).unwrap_err().to_string();
    assert!(message.ends_with("no row to use: 1 row, 1 dropped as too long"), "{message}");
}

#[test]
fn a_split_row_becomes_parts_predicted_from_their_own_start() {
    let dataset = load(rows(&[8, 20, 17]), &limited(OverLong::Split)).unwrap();
    // The last row's third part is one token, which nothing predicts.
    assert_eq!(lengths(&dataset), [(1, 8), (2, 8), (2, 8), (2, 4), (3, 8), (3, 8)]);
    for example in dataset.examples() {
        assert_eq!(example.weights[0], 0.0);
        assert!(example.weights[1..].iter().all(|&weight| weight == 1.0));
    }
    assert_eq!(*dataset.report(), LoadReport { rows: 3, split: 2, unweighted: 1, ..LoadReport::default() });
    let whole = load(rows(&[20]), &DataOptions::default()).unwrap();
    let parts: Vec<u32> = dataset.examples()[1..4].iter().flat_map(|part| part.tokens.clone()).collect();
    assert_eq!(parts, whole.examples()[0].tokens);
}

#[test]
fn a_masked_row_that_is_split_keeps_its_mask() {
    let row = format!("{{\"prompt\": \"{}\", \"completion\": \"{}\"}}", " p".repeat(30), " c".repeat(15));
    let whole = load(&row, &masked()).unwrap();
    let whole = &whole.examples()[0];
    let dataset = load(&row, &DataOptions { max_tokens: 8, over_long: OverLong::Split, ..masked() }).unwrap();
    let skipped_parts = whole.weights.chunks(8).take_while(|part| part.iter().all(|&weight| weight == 0.0)).count();
    assert!(skipped_parts >= 3);
    assert_eq!((dataset.report().split, dataset.report().unweighted), (1, skipped_parts));
    for (example, place) in dataset.examples().iter().zip(skipped_parts..) {
        let range = place * 8..whole.tokens.len().min(place * 8 + 8);
        assert_eq!(example.tokens, whole.tokens[range.clone()]);
        assert_eq!(example.weights[0], 0.0);
        assert_eq!(example.weights[1..], whole.weights[range][1..]);
    }
}

#[test]
fn a_prompt_beyond_the_limit_leaves_nothing_to_learn_and_is_counted() {
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"c\"}}", " p".repeat(50));
    let short = r#"{"prompt": "p", "completion": "c"}"#;
    let options = DataOptions { max_tokens: 20, ..masked() };
    let dataset = load(format!("{long}\n{short}"), &options).unwrap();
    assert_eq!(dataset.examples().iter().map(|example| example.line).collect::<Vec<_>>(), [2]);
    assert_eq!(*dataset.report(), LoadReport { rows: 2, truncated: 1, unweighted: 1, ..LoadReport::default() });
    let message = load(long, &options).unwrap_err().to_string();
    let end = "no row to use: 1 row, 1 truncated, 1 left out without a weighted token to predict";
    assert!(message.ends_with(end), "{message}");
}

#[test]
fn rows_of_fewer_than_two_tokens_are_left_out_and_counted() {
    let dataset =
        load("{\"text\": \"\"}\n{\"text\": \"a\"}\n{\"text\": \"<|im_end|>\"}\n", &DataOptions::default()).unwrap();
    assert_eq!(lengths(&dataset), [(2, 2)]);
    assert_eq!(*dataset.report(), LoadReport { rows: 3, unweighted: 2, ..LoadReport::default() });

    let silent = changed_tokenizer(|config| config["chat_template"] = Value::from("{{ '' }}"));
    let message =
        load_with(&silent, r#"{"prompt": "p", "completion": "c"}"#, &DataOptions::default()).unwrap_err().to_string();
    assert!(message.ends_with("1 row, 1 left out without a weighted token to predict"), "{message}");
}

#[test]
fn a_limit_below_two_is_an_error_before_anything_is_read() {
    let options = DataOptions { max_tokens: 1, ..DataOptions::default() };
    let error = Dataset::load(Path::new("/there/is/no/such/file"), &tokenizer(), &options).unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { name: "max_tokens", .. }), "{error}");
}
