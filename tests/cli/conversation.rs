//! `chat` in a pipe: lines in, answers out.

use crate::command::{golden, run_on, rust_tiny};

fn chat(stdin: &str) -> crate::command::Ran {
    run_on(stdin, &format!("chat --quiet --temperature 0 --max-tokens 8 --model {}", rust_tiny()), &[])
}

#[test]
fn each_line_is_answered_until_the_input_ends() {
    let one = chat("What is a trait?\n").ok();
    assert!(one.out.ends_with('\n') && one.out.len() > 2, "{:?}", one.out);
    assert_eq!(one.err, "");
    let two = chat("What is a trait?\nAnd a struct?\n").ok();
    assert!(two.out.starts_with(&one.out) && two.out.len() > one.out.len(), "{:?}", two.out);
    assert_eq!(chat("").ok().out, "");
    assert_eq!(chat("\n  \n").ok().out, "", "empty lines are no turns");
}

#[test]
fn reset_begins_anew_and_quit_ends() {
    let one = chat("What is a trait?\n").ok().out;
    let again = chat("What is a trait?\n/reset\nWhat is a trait?\n/quit\nnever asked\n").ok().out;
    assert_eq!(again, format!("{one}{one}"));
    let continued = chat("What is a trait?\nWhat is a trait?\n").ok().out;
    assert_ne!(continued, again, "without /reset the first turn is remembered");
}

#[test]
fn a_turn_too_long_is_told_and_the_conversation_goes_on() {
    let long = "word ".repeat(600);
    let ran = chat(&format!("{long}\nWhat is a trait?\n")).ok();
    assert!(ran.err.contains("error: ") && ran.err.contains("512"), "{}", ran.err);
    assert_eq!(ran.out, chat("What is a trait?\n").ok().out);
}

#[test]
fn the_system_prompt_and_an_adapter_change_the_answer() {
    let words = format!("chat --quiet --temperature 0 --max-tokens 12 --model {}", golden("qwen2-tiny"));
    let plain = run_on("hello\n", &words, &[]).ok().out;
    assert_ne!(run_on("hello\n", &words, &["--system", "Speak Dutch."]).ok().out, plain);
    let adapter = golden("qwen2-tiny/lora_all_rslora");
    assert_ne!(run_on("hello\n", &words, &["--adapter", &adapter]).ok().out, plain);
}

#[test]
fn input_that_is_not_text_ends_in_an_error() {
    let ran = run_on(b"\xff\xfe\n", &format!("chat --model {}", rust_tiny()), &[]);
    assert!(ran.error().contains("stdin"));
}
