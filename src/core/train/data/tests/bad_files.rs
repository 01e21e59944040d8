//! Files as they come: other line ends and encodings, broken rows, rows of the wrong kind.

use super::*;

const GOOD: &str = r#"{"text": "good"}"#;

#[test]
fn line_ends_marks_and_blank_lines_change_nothing() {
    let plain = load(format!("{GOOD}\n{GOOD}\n"), &DataOptions::default()).unwrap();
    assert_eq!(plain.report().rows, 2);
    let tokens = |dataset: &Dataset| dataset.examples().iter().map(|e| e.tokens.clone()).collect::<Vec<_>>();
    for (content, lines) in [
        (format!("{GOOD}\n{GOOD}"), [1, 2]),
        (format!("\u{feff}{GOOD}\n{GOOD}\n"), [1, 2]),
        (format!("\u{feff}\r\n{GOOD}\r\n{GOOD}\r\n"), [2, 3]),
        (format!("\n \t\n{GOOD}\n\r\n\n  {GOOD}\t \n\n"), [3, 6]),
    ] {
        let dataset = load(&content, &DataOptions::default()).unwrap();
        assert_eq!(tokens(&dataset), tokens(&plain), "{content:?}");
        assert_eq!(dataset.examples().iter().map(|example| example.line).collect::<Vec<_>>(), lines, "{content:?}");
        assert_eq!(dataset.report().rows, 2, "{content:?}");
    }
}

/// Every bad row, between two good ones, fails with its line and a reason, or is skipped with both and leaves the others as they are.
fn each_fails_and_is_skipped(good: &str, rows: &[(&[u8], &str)], options: &DataOptions) {
    let plain = load(format!("{good}\n\n{good}"), options).unwrap();
    for (row, reason) in rows {
        let shown = String::from_utf8_lossy(&row[..row.len().min(80)]);
        let content = [good.as_bytes(), row, good.as_bytes()].join(&b'\n');
        match load(&content, options) {
            Err(Error::BadRow { path, line: 2, problem }) => {
                assert!(path.ends_with("rows.jsonl"));
                assert!(problem.contains(reason), "{shown}: {problem}");
            }
            other => panic!("{shown}: {other:?}"),
        }
        let skipped = load(&content, &DataOptions { bad_rows: BadRows::Skip, ..options.clone() }).unwrap();
        assert_eq!(skipped.examples(), plain.examples(), "{shown}");
        assert_eq!(skipped.report().rows, 3);
        let [SkippedRow { line: 2, problem }] = skipped.report().skipped.as_slice() else { panic!("{shown}") };
        assert!(problem.contains(reason), "{shown}: {problem}");
    }
}

#[test]
fn a_row_that_is_no_json_object_is_bad() {
    let deep = format!("{{\"text\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let rows: &[(&[u8], &str)] = &[
        (b"{\"text\": \"cut off", "not JSON: EOF while parsing a string at column 17"),
        (b"text", "not JSON: "),
        (b"{'text': 'quotes of Python'}", "not JSON: "),
        (b"{\"text\": \"a\"} {\"text\": \"b\"}", "not JSON: trailing characters at column 15"),
        (b"{\"text\": \"a\",}", "not JSON: "),
        (b"{\"text\": NaN}", "not JSON: "),
        (b"\0", "not JSON: "),
        (b"{\"text\": \"raw \x01 control\"}", "not JSON: control character"),
        (b"{\"text\": \"\\ud800\"}", "not JSON: "),
        (b"{\"text\": \"\\udc00 \\ud800\"}", "not JSON: "),
        (b"{\"text\": \"\\ud800\\u0041\"}", "not JSON: "),
        (b"{\"\\ud800\": 1, \"text\": \"a\"}", "not JSON: "),
        (b"{\"text\": \"\xff\"}", "not UTF-8 from byte 11 on"),
        (b"{\"text\": \"\xed\xa0\x80\"}", "not UTF-8 from byte 11 on"),
        (b"{\"text\": \"\xc3", "not UTF-8 from byte 11 on"),
        (b"\xef\xbb\xbf{\"text\": \"a mark within the file\"}", "not JSON: "),
        (b"[\"text\"]", "a row is a JSON object, this is an array"),
        (b"\"text\"", "a row is a JSON object, this is a string"),
        (b"null", "a row is a JSON object, this is null"),
        (b"1e999", "not JSON: number out of range"),
        (deep.as_bytes(), "not JSON: recursion limit"),
    ];
    each_fails_and_is_skipped(GOOD, rows, &DataOptions::default());
}

#[test]
fn a_row_of_another_form_or_type_is_bad() {
    let other = "in a file whose rows have `text` since line 1";
    let texts: &[(&[u8], &str)] = &[
        (b"{}", "`text` is missing; the file's rows have `text` since line 1"),
        (b"{\"Text\": \"a\"}", "`text` is missing"),
        (b"{\"text\": null}", "`text` is a string, this is null"),
        (b"{\"text\": 5}", "`text` is a string, this is a number"),
        (b"{\"text\": [\"a\"]}", "`text` is a string, this is an array"),
        (b"{\"prompt\": \"p\", \"completion\": \"c\"}", other),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", other),
    ];
    each_fails_and_is_skipped(GOOD, texts, &DataOptions::default());

    let completions: &[(&[u8], &str)] = &[
        (b"{\"prompt\": \"p\"}", "`completion` is missing"),
        (b"{\"completion\": \"c\"}", "`prompt` is missing"),
        (b"{\"prompt\": \"p\", \"completion\": {}}", "`completion` is a string, this is an object"),
        (b"{\"prompt\": true, \"completion\": \"c\"}", "`prompt` is a string, this is a boolean"),
        (b"{\"prompt\": \"p\", \"completion\": \"c\", \"tools\": \"t\"}", "`tools` is an array, this is a string"),
        (b"{\"text\": \"t\"}", "a row of `text` in a file whose rows have `prompt` and `completion`"),
    ];
    each_fails_and_is_skipped(r#"{"prompt": "p", "completion": "c"}"#, completions, &DataOptions::default());

    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let messages: &[(&[u8], &str)] = &[
        (b"{\"messages\": []}", "`messages` is empty"),
        (b"{\"messages\": {}}", "`messages` is an array, this is an object"),
        (b"{\"messages\": [\"a\"]}", "`messages[0]` is not an object but a string"),
        (b"{\"messages\": [{\"content\": \"a\"}]}", "`messages[0]` missing field `role`"),
        (b"{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}", "`messages[0]` invalid type"),
        (b"{\"messages\": [{\"role\": \"user\", \"contents\": \"a\"}]}", "`messages[0]` has no `content`"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "`messages[0]` has no `content`"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": 1}]}", "`messages[0]` has a number as its `content`"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "a message before the last"),
        (b"{\"conversations\": []}", "`messages` is missing"),
    ];
    each_fails_and_is_skipped(good, messages, &masked());
}

#[test]
fn a_template_that_refuses_a_row_makes_it_bad() {
    let tokenizer = changed_tokenizer(|config| {
        config["chat_template"] =
            Value::from("{{ raise_exception('no such role') if messages[0].role == 'x' else 'fine' }}");
    });
    let content =
        ["y", "x"].map(|role| format!("{{\"messages\": [{{\"role\": \"{role}\", \"content\": \"\"}}]}}")).join("\n");
    match load_with(&tokenizer, &content, &DataOptions::default()) {
        Err(Error::BadRow { line: 2, problem, .. }) => assert!(problem.contains("no such role"), "{problem}"),
        other => panic!("{other:?}"),
    }
    let dataset = load_with(&tokenizer, &content, &skipping()).unwrap();
    assert_eq!((dataset.examples().len(), dataset.report().skipped[0].line), (1, 2));
}

#[test]
fn a_line_beyond_the_cap_is_bad_and_the_next_is_read() {
    let text = |bytes: usize| format!("{{\"text\": \"{}\"}}", "\\u0061".repeat(bytes / 6)).into_bytes();
    let long = text(lines::LINE_CAP + 100);
    let longer = text(3 * lines::LINE_CAP);
    each_fails_and_is_skipped(
        GOOD,
        &[(&long, "longer than 16 MiB"), (&longer, "longer than 16 MiB")],
        &DataOptions::default(),
    );

    // A line of exactly the cap is read; one byte more is not. Spaces are no tokens.
    for (spare, good) in [(0, true), (1, false)] {
        let mut line = vec![b' '; lines::LINE_CAP - GOOD.len() + spare];
        line.extend_from_slice(GOOD.as_bytes());
        for end in ["", "\n"] {
            let content = [line.as_slice(), end.as_bytes()].concat();
            assert_eq!(load(content, &DataOptions::default()).is_ok(), good, "{spare} {end:?}");
        }
    }
}

#[test]
fn the_first_good_row_decides_the_form() {
    let unknown = r#"{"question": "q", "answer": "a"}"#;
    let content = format!("broken\n{unknown}\n{GOOD}\n{{\"prompt\": \"p\", \"completion\": \"c\"}}");
    let dataset = load(&content, &skipping()).unwrap();
    assert_eq!(dataset.examples().iter().map(|example| example.line).collect::<Vec<_>>(), [3]);
    let skipped = &dataset.report().skipped;
    assert_eq!(skipped.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 4]);
    assert!(skipped[1].problem.ends_with("this one has `question`, `answer`"), "{}", skipped[1].problem);
    assert!(skipped[2].problem.ends_with("`text` since line 3"), "{}", skipped[2].problem);
    assert!(matches!(load(unknown, &DataOptions::default()), Err(Error::BadRow { line: 1, .. })));
    assert!(matches!(load("{}", &DataOptions::default()), Err(Error::BadRow { line: 1, .. })));
}

#[test]
fn what_no_row_can_do_without_is_an_error_even_when_bad_rows_are_skipped() {
    let endless = changed_tokenizer(|config| {
        config["eos_token"] = Value::Null;
        drop(config.as_object_mut().unwrap().remove("chat_template"));
    });
    let completion = r#"{"prompt": "p", "completion": "c"}"#;
    let messages = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    for (tokenizer, row, mask_prompt, reason) in [
        (&tokenizer(), GOOD, true, "no prompt to mask"),
        (&without_template(), messages, false, "need a chat template"),
        (&endless, GOOD, false, "names none"),
        (&endless, completion, false, "names none"),
    ] {
        let error = load_with(tokenizer, row, &DataOptions { mask_prompt, ..skipping() }).unwrap_err();
        assert!(matches!(&error, Error::Data { problem, .. } if problem.contains(reason)), "{error}");
    }
    let tools = format!("{completion}\n{{\"prompt\": \"p\", \"completion\": \"c\", \"tools\": []}}");
    let error = load_with(&without_template(), tools, &DataOptions::default()).unwrap_err();
    assert!(
        matches!(&error, Error::BadRow { line: 2, problem, .. } if problem.contains("need a chat template")),
        "{error}"
    );
}

#[test]
fn a_file_without_a_usable_row_is_an_error_that_says_why() {
    for (content, reason) in [
        ("", "no row to use: 0 rows"),
        ("\u{feff}", "no row to use: 0 rows"),
        ("\r\n\n \n", "no row to use: 0 rows"),
        ("x\n{}\n", "no row to use: 2 rows, 2 skipped (the first in line 1: not JSON: expected value at column 1)"),
    ] {
        let error = load(content, &skipping()).unwrap_err();
        assert!(matches!(&error, Error::Data { problem, .. } if problem == reason), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = TempDir::new().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("absent.jsonl")] {
        let error = Dataset::load(&path, &tokenizer(), &DataOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error}");
    }
}
