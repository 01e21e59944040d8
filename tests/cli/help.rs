//! The help: every flag of the contract is there, and every flag says what it does.

use crate::command::run;

const EVERYWHERE: &str = "backend dtype strict threads json quiet verbose help";
const SAMPLING: &str = "max-tokens temperature top-k top-p min-p repetition-penalty presence-penalty frequency-penalty seed stop \
     cache-dtype";

fn verbs() -> Vec<(&'static str, String)> {
    let train = "model data output config init-adapter resume dry-run rank alpha dropout target rslora learning-rate schedule warmup-steps \
                 weight-decay batch-size gradient-accumulation pack gradient-checkpointing max-seq-len steps epochs mask-prompt \
                 max-grad-norm seed eval-every checkpoint-every keep-last max-skipped-steps bad-rows over-long temperature symmetric";
    vec![
        ("generate", format!("model adapter prompt prompt-file tokens chat system logprobs {SAMPLING}")),
        ("chat", format!("model adapter system {SAMPLING}")),
        ("logits", "model adapter tokens output".into()),
        ("score", "model adapter data mask-prompt max-seq-len bad-rows over-long".into()),
        ("embed", "model adapter kind input output format dimensions batch-tokens".into()),
        ("train", train.into()),
        ("merge", "model adapter output".into()),
        ("adapter show", String::new()),
        ("adapter convert", "to".into()),
    ]
}

/// Flags and their texts, wherever the help puts the text.
fn flags(help: &str) -> Vec<(String, String)> {
    let mut flags: Vec<(String, String)> = Vec::new();
    for line in help.lines() {
        let line = line.trim();
        if line.starts_with('-') && !line.starts_with("- ") {
            let flag = line.split("--").nth(1).unwrap().split([' ', '.']).next().unwrap();
            let text = line.split_once("  ").map_or("", |(_, text)| text.trim());
            flags.push((flag.to_owned(), text.to_owned()));
        } else if let Some((_, text)) = flags.last_mut() {
            text.push_str(line);
        }
    }
    flags
}

#[test]
fn every_verb_has_the_flags_of_the_contract_and_each_a_text() {
    for (verb, own) in verbs() {
        let help = run(verb, &["--help"]).ok();
        assert_eq!(help.err, "");
        let flags = flags(&help.out);
        let mut found: Vec<&str> = flags.iter().map(|(flag, _)| flag.as_str()).collect();
        let mut expected: Vec<&str> = own.split_whitespace().chain(EVERYWHERE.split_whitespace()).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{verb}");
        for (flag, text) in &flags {
            assert!(text.len() > 5, "{verb} --{flag}: `{text}`");
        }
        let values = help.out.split('<').skip(1).filter_map(|text| text.split('>').next());
        assert!(values.filter(|name| name.contains('_')).count() == 0, "a value is named after a field: {}", help.out);
    }
}

#[test]
fn the_verbs_and_the_version_are_listed() {
    let help = run("--help", &[]).ok().out;
    for (verb, _) in verbs() {
        assert!(help.contains(verb.split(' ').next().unwrap()), "{verb}");
    }
    assert!(run("--version", &[]).ok().out.starts_with("firebrick 0."));
}

#[test]
fn a_wrong_command_line_is_status_2() {
    for words in
        ["", "gernerate", "generate", "generate --model m", "train --model m --data d", "adapter", "score --nope"]
    {
        let ran = run(words, &[]);
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{words}: {}", ran.err);
        assert!(ran.err.contains("Usage: firebrick"), "{words}: {}", ran.err);
    }
    for words in [
        "generate --model m --prompt a --tokens 1",
        "generate --model m --prompt a --logprobs 2",
        "generate --model m --prompt a --system s",
        "generate --model m --prompt a --dtype q5",
        "generate --model m --prompt a --threads 0",
        "generate --model m --tokens 1,x",
        "generate --model m --tokens 1 --chat",
        "chat --model m --json",
        "train --model m --data d --output o --steps 1 --epochs 1",
        "train --model m --data d --output o --steps 0",
        "train --model m --data d --output o --init-adapter a --rank 2",
        "train --model m --data d --output o --learning-rate -1",
        "train --model m --data d --output o --weight-decay nan",
        "train --model m --data d --output o --schedule cubic",
        "train --model m --data d --output o --max-seq-len 1",
        "score --model m --data d --bad-rows maybe",
        "score --model m --data d --max-seq-len 1",
        "adapter convert --to gguf a b",
    ] {
        run(words, &[]).misuse();
    }
}

#[test]
fn a_backend_that_does_not_exist_lists_those_that_do() {
    let error = run("adapter show nowhere --backend tpu", &[]).misuse();
    assert!(error.contains("`tpu`") && error.contains("auto") && error.contains("flex"), "{error}");
}
