//! What is fuzzed, a function for each kind of input: a stranger's bytes go in, and an error or a result comes out, never a panic, an abort
//! or a wait. `targets/` gives each to libFuzzer, `../fuzz.rs` runs each on mutated seeds. They say whether the input was accepted.
//!
//! Where several files belong together, the first byte says which of them the rest is; the others are whole.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

use firebrick::backends::Flex;
use firebrick::core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick::core::embed::EmbedConfig;
use firebrick::core::error::Result;
use firebrick::core::generation::GenerationConfig;
use firebrick::core::lora::Adapter;
use firebrick::core::model::CausalLm;
use firebrick::core::sequence::Sequences;
use firebrick::core::text::{ChatTemplate, Message, TemplateOptions, Tokenizer};
use firebrick::core::train::data::{BadRows, DataOptions, Dataset, OverLong};
use firebrick::models::{load_causal_lm, load_encoder};
use serde_json::json;
use tempfile::TempDir;

use crate::seeds;

/// A folder in memory, where there is one: a file is written for each execution.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = std::env::var_os("TMPDIR").map(PathBuf::from).or_else(|| memory.is_dir().then(|| memory.to_owned()));
    tempfile::tempdir_in(place.unwrap_or_else(std::env::temp_dir)).unwrap()
}

/// Calls `run` with a folder of this thread that `fill` filled once.
fn with_folder<T>(cell: &OnceCell<TempDir>, fill: impl FnOnce(&Path), run: impl FnOnce(&Path) -> T) -> T {
    let folder = cell.get_or_init(|| {
        let folder = folder();
        fill(folder.path());
        folder
    });
    run(folder.path())
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(folder.join(name), bytes).unwrap();
}

/// Loads the decoder, reads every tensor by itself, and computes if it can.
fn decoder(path: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.fingerprint();
    for name in checkpoint.names() {
        // An integer is told apart from a float here; either is an answer.
        let _ = checkpoint.data(name);
    }
    let model = load_causal_lm::<Flex>(&checkpoint, DTypePolicy::Auto, &Default::default())?;
    compute(&*model);
    Ok(())
}

fn compute(model: &dyn CausalLm<Flex>) {
    let hidden = model.hidden(&Sequences::whole(&[[1u32, 2, 3]], &Default::default()), None);
    assert_eq!(hidden.dims(), [3, model.facts().hidden]);
}

/// `model.safetensors`, or the index of shards that are whole.
pub fn checkpoint(data: &[u8]) -> bool {
    thread_local!(static FOLDER: OnceCell<TempDir> = const { OnceCell::new() });
    let Some((which, data)) = data.split_first() else { return false };
    let fill = |folder: &Path| {
        write(folder, "config.json", seeds::QWEN);
        write(folder, "a.safetensors", seeds::decoder_weights(|at: usize| at.is_multiple_of(2)));
        write(folder, "b.safetensors", seeds::decoder_weights(|at| at % 2 == 1));
    };
    FOLDER.with(|cell| {
        with_folder(cell, fill, |folder| {
            if which & 1 == 0 {
                write(folder, "model.safetensors", data);
            } else {
                let _ = fs::remove_file(folder.join("model.safetensors"));
                write(folder, "model.safetensors.index.json", data);
            }
            decoder(folder).is_ok()
        })
    })
}

/// A `.gguf` file, its tokenizer too.
pub fn gguf(data: &[u8]) -> bool {
    thread_local!(static FOLDER: OnceCell<TempDir> = const { OnceCell::new() });
    FOLDER.with(|cell| {
        with_folder(
            cell,
            |_| {},
            |folder| {
                write(folder, "model.gguf", data);
                let path = folder.join("model.gguf");
                if let Ok(checkpoint) = Checkpoint::open(&path) {
                    let _ = Tokenizer::from_files(checkpoint.files()).map(|tokenizer| use_tokenizer(&tokenizer));
                    let _ = GenerationConfig::from_files(checkpoint.files());
                }
                decoder(&path).is_ok()
            },
        )
    })
}

/// The config or the weights of an adapter of PEFT, or of mlx-lm.
pub fn adapter(data: &[u8]) -> bool {
    thread_local!(static FOLDERS: [OnceCell<TempDir>; 2] = const { [OnceCell::new(), OnceCell::new()] });
    thread_local!(static MODEL: Box<dyn CausalLm<Flex>> = tiny_decoder());
    let Some((which, data)) = data.split_first() else { return false };
    let is_mlx = which & 2 != 0;
    let weights = if is_mlx { "adapters.safetensors" } else { "adapter_model.safetensors" };
    let whole = [seeds::adapter_config(is_mlx).into_bytes(), seeds::adapter_weights(is_mlx)];
    FOLDERS.with(|cells| {
        with_folder(
            &cells[usize::from(is_mlx)],
            |_| {},
            |folder| {
                let [config, matrices] = if which & 1 == 0 { [data, &whole[1]] } else { [&whole[0], data] };
                write(folder, "adapter_config.json", config);
                write(folder, weights, matrices);
                let Ok(adapter) = Adapter::<Flex>::load(folder, &Default::default()) else { return false };
                MODEL.with(|model| adapter.attach(&**model).map(|model| compute(&*model)).is_ok())
            },
        )
    })
}

fn tiny_decoder() -> Box<dyn CausalLm<Flex>> {
    let folder = folder();
    write(folder.path(), "config.json", seeds::QWEN);
    write(folder.path(), "model.safetensors", seeds::decoder_weights(|_| true));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    load_causal_lm(&checkpoint, DTypePolicy::Auto, &Default::default()).unwrap()
}

/// The small files of an encoder with their names, whole.
const ENCODER_FILES: [(&str, &str); 5] = [
    ("modules.json", seeds::MODULES),
    ("1_Pooling/config.json", seeds::POOLING),
    ("sentence_bert_config.json", seeds::LENGTH),
    ("config_sentence_transformers.json", seeds::PROMPTS),
    ("tokenizer_config.json", seeds::TOKENIZER_CONFIG),
];

/// `config.json` of a decoder or an encoder, `generation_config.json`, or what sentence-transformers writes beside an encoder.
pub fn config(data: &[u8]) -> bool {
    thread_local!(static DECODER: OnceCell<TempDir> = const { OnceCell::new() });
    thread_local!(static ENCODER: OnceCell<TempDir> = const { OnceCell::new() });
    let Some((which, data)) = data.split_first() else { return false };
    let fill_encoder = |folder: &Path| {
        write(folder, "config.json", seeds::BERT);
        write(folder, "model.safetensors", seeds::encoder_weights());
        fs::create_dir(folder.join("1_Pooling")).unwrap();
        ENCODER_FILES.into_iter().for_each(|(name, whole)| write(folder, name, whole));
    };
    match which % 8 {
        0 | 1 => DECODER.with(|cell| {
            let fill = |folder: &Path| write(folder, "model.safetensors", seeds::decoder_weights(|_| true));
            with_folder(cell, fill, |folder| {
                write(folder, "config.json", if which % 8 == 0 { data } else { seeds::QWEN.as_bytes() });
                write(folder, "generation_config.json", if which % 8 == 1 { data } else { b"{}" });
                let generation = GenerationConfig::from_folder(folder);
                decoder(folder).is_ok() && generation.is_ok()
            })
        }),
        2 => ENCODER.with(|cell| {
            with_folder(cell, fill_encoder, |folder| {
                write(folder, "config.json", data);
                let loaded = Checkpoint::open(folder).and_then(|checkpoint| {
                    let model = load_encoder::<Flex>(&checkpoint, DTypePolicy::Auto, &Default::default())?;
                    let hidden = model.encode(&Sequences::whole(&[[1u32, 2, 3]], &Default::default()));
                    assert_eq!(hidden.dims(), [3, model.facts().hidden]);
                    Ok(())
                });
                write(folder, "config.json", seeds::BERT);
                loaded.is_ok()
            })
        }),
        which => ENCODER.with(|cell| {
            with_folder(cell, fill_encoder, |folder| {
                let (name, whole) = ENCODER_FILES[usize::from(which) - 3];
                write(folder, name, data);
                let read = Checkpoint::open(folder).and_then(|checkpoint| EmbedConfig::read(&checkpoint));
                write(folder, name, whole);
                read.is_ok()
            })
        }),
    }
}

/// `tokenizer.json`, which then reads and writes.
pub fn tokenizer(data: &[u8]) -> bool {
    thread_local!(static FOLDER: OnceCell<TempDir> = const { OnceCell::new() });
    quiet();
    FOLDER.with(|cell| {
        with_folder(
            cell,
            |_| {},
            |folder| {
                write(folder, "tokenizer.json", data);
                Tokenizer::from_folder(folder).map(|tokenizer| use_tokenizer(&tokenizer)).is_ok()
            },
        )
    })
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    quiet();
    for text in ["", "hello world", " a\u{301} é東京🙂\r\n\t", "<s>x</s><|im_end|> 12", "\u{0}\u{feff}ﬁ①"] {
        for special in [false, true] {
            let Ok(ids) = tokenizer.encode(text, special) else { continue };
            let _ = tokenizer.decode(&ids, special);
        }
    }
    let mut detokenizer = tokenizer.detokenizer(true);
    for id in [0, 1, 2, 3, 200, 201, u32::MAX] {
        let _ = detokenizer.push(id);
    }
    let _ = detokenizer.finish();
}

/// What the tokenizers library panics over is caught and is an error; libFuzzer would take the message for a crash.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("FIREBRICK_FUZZ").is_some() {
            std::panic::set_hook(Box::new(|_| {}));
        }
    });
}

/// The source of a chat template.
pub fn template(data: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(data) else { return false };
    let template = ChatTemplate::new(source, Some("<s>".into()), Some("</s>".into()), None);
    let messages = [Message::system("Be brief."), Message::user("Hé {{ 1 }}"), Message::assistant("")];
    let tools = Some(vec![json!({"type": "function", "function": {"name": "f", "parameters": {}}})]);
    let options = TemplateOptions { add_generation_prompt: true, tools, ..TemplateOptions::default() };
    template.and_then(|template| template.render(&messages, &options)).is_ok()
}

/// A jsonl file of rows, read by options that the first byte chooses.
pub fn dataset(data: &[u8]) -> bool {
    thread_local!(static FOLDER: OnceCell<TempDir> = const { OnceCell::new() });
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let Some((which, data)) = data.split_first() else { return false };
    let options = DataOptions {
        mask_prompt: which & 1 != 0,
        bad_rows: if which & 2 != 0 { BadRows::Fail } else { BadRows::Skip },
        over_long: OverLong::ALL[usize::from(which >> 2) % 3],
        max_tokens: 64,
    };
    FOLDER.with(|cell| {
        with_folder(
            cell,
            |_| {},
            |folder| {
                let tokenizer = TOKENIZER.get_or_init(|| {
                    write(folder, "tokenizer.json", seeds::TOKENIZER);
                    write(folder, "tokenizer_config.json", seeds::TOKENIZER_CONFIG);
                    Tokenizer::from_folder(folder).unwrap()
                });
                write(folder, "train.jsonl", data);
                let Ok(dataset) = Dataset::load(&folder.join("train.jsonl"), tokenizer, &options) else { return false };
                for example in dataset.examples() {
                    assert!((2..=options.max_tokens).contains(&example.tokens.len()));
                    assert!(example.tokens.len() == example.weights.len() && example.weights.contains(&1.0));
                }
                let report = dataset.report();
                assert!(report.skipped.len() + report.dropped <= report.rows);
                true
            },
        )
    })
}
