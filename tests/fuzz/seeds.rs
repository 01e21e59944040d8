//! Small good inputs, from which fuzzing starts: a corpus for each body, its first byte included where the body reads one.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub const QWEN: &str = r#"{"model_type":"qwen2","vocab_size":16,"hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,
"num_attention_heads":2,"num_key_value_heads":1,"max_position_embeddings":32,"rms_norm_eps":1e-6,"rope_theta":10000.0,
"hidden_act":"silu","tie_word_embeddings":true,"use_sliding_window":true,"sliding_window":4,"layer_types":["full_attention"],
"rope_scaling":{"rope_type":"yarn","factor":2.0,"original_max_position_embeddings":16,"beta_fast":32},"eos_token_id":[1,2]}"#;
pub const BERT: &str = include_str!("../goldens/encoders/bert-epsilon/config.json");
pub const MODULES: &str = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
{"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
{"idx":2,"name":"2","path":"2_Normalize","type":"sentence_transformers.models.Normalize"}]"#;
pub const POOLING: &str =
    r#"{"word_embedding_dimension":32,"pooling_mode_cls_token":false,"pooling_mode_mean_tokens":true}"#;
pub const LENGTH: &str = r#"{"max_seq_length":16,"do_lower_case":false}"#;
pub const PROMPTS: &str = r#"{"prompts":{"query":"query: ","passage":"passage: "},"default_prompt_name":"query","similarity_fn_name":"cosine"}"#;
pub const TOKENIZER: &[u8] = include_bytes!("../goldens/qwen2-tiny/tokenizer.json");
pub const TOKENIZER_CONFIG: &str = include_str!("../goldens/qwen2-tiny/tokenizer_config.json");
const GENERATION: &str = r#"{"eos_token_id":[1,2],"do_sample":true,"temperature":0.7,"top_k":20,"top_p":0.8,"min_p":0.1,
"repetition_penalty":1.05,"max_new_tokens":32,"stop_strings":["end"],"num_beams":1}"#;

/// Shapes by name, in f32.
fn safetensors(tensors: &[(&str, Vec<usize>)]) -> Vec<u8> {
    let values: BTreeMap<&str, (Vec<u8>, Vec<usize>)> = tensors
        .iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            let bytes = (0..count).flat_map(|at| ((at % 7) as f32 * 0.1 - 0.3).to_le_bytes());
            (*name, (bytes.collect(), shape.clone()))
        })
        .collect();
    let views =
        values.iter().map(|(name, (bytes, shape))| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

const DECODER: [(&str, &[usize]); 14] = [
    ("model.embed_tokens.weight", &[16, 8]),
    ("model.layers.0.input_layernorm.weight", &[8]),
    ("model.layers.0.mlp.down_proj.weight", &[8, 8]),
    ("model.layers.0.mlp.gate_proj.weight", &[8, 8]),
    ("model.layers.0.mlp.up_proj.weight", &[8, 8]),
    ("model.layers.0.post_attention_layernorm.weight", &[8]),
    ("model.layers.0.self_attn.k_proj.bias", &[4]),
    ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
    ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.q_proj.bias", &[8]),
    ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.v_proj.bias", &[4]),
    ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
    ("model.norm.weight", &[8]),
];

/// Those weights of the decoder that [`QWEN`] describes whose place in the alphabet is chosen.
pub fn decoder_weights(chosen: impl Fn(usize) -> bool) -> Vec<u8> {
    let tensors = DECODER.iter().enumerate().filter(|(at, _)| chosen(*at));
    safetensors(&tensors.map(|(_, (name, shape))| (*name, shape.to_vec())).collect::<Vec<_>>())
}

pub fn encoder_weights() -> &'static [u8] {
    include_bytes!("../goldens/encoders/bert-epsilon/model.safetensors")
}

pub fn adapter_config(is_mlx: bool) -> String {
    if is_mlx {
        let parameters = json!({"rank": 2, "scale": 8.0, "dropout": 0.1, "keys": ["self_attn.q_proj"]});
        return json!({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}).to_string();
    }
    json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj"], "bias": "none",
        "use_rslora": false, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {}, "layers_to_transform": [0],
        "init_lora_weights": true, "task_type": "CAUSAL_LM",
    })
    .to_string()
}

pub fn adapter_weights(is_mlx: bool) -> Vec<u8> {
    let path = "model.layers.0.self_attn.q_proj";
    let names = match is_mlx {
        true => [format!("{path}.lora_a"), format!("{path}.lora_b")],
        false => ["A", "B"].map(|side| format!("base_model.model.{path}.lora_{side}.weight")),
    };
    let shapes = if is_mlx { [vec![8, 2], vec![2, 8]] } else { [vec![2, 8], vec![8, 2]] };
    let [a, b] = shapes;
    safetensors(&[(&names[0], a), (&names[1], b)])
}

fn behind(which: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&[which], bytes.as_ref()].concat()
}

pub fn checkpoint() -> Vec<Vec<u8>> {
    let shard = |at: usize| if at.is_multiple_of(2) { "a.safetensors" } else { "b.safetensors" };
    let map: BTreeMap<&str, &str> = DECODER.iter().enumerate().map(|(at, (name, _))| (*name, shard(at))).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    vec![behind(0, decoder_weights(|_| true)), behind(0, decoder_weights(|at| at < 2)), behind(1, index)]
}

pub fn adapter() -> Vec<Vec<u8>> {
    let of = |is_mlx: bool| {
        let which = u8::from(is_mlx) * 2;
        [behind(which, adapter_config(is_mlx)), behind(which + 1, adapter_weights(is_mlx))]
    };
    [of(false), of(true)].concat()
}

pub fn config() -> Vec<Vec<u8>> {
    let linear = QWEN.replace("yarn", "linear").replace(r#","original_max_position_embeddings":16,"beta_fast":32"#, "");
    let llama = r#"{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":16}"#;
    let mut new: Value = serde_json::from_str(QWEN).unwrap();
    new["rope_parameters"] = serde_json::from_str(llama).unwrap();
    new["rope_scaling"] = Value::Null;
    let new_pooling = r#"{"embedding_dimension":32,"pooling_mode":["mean","cls"],"include_prompt":true}"#;
    let files = [
        (0, QWEN),
        (0, &linear),
        (0, &new.to_string()),
        (1, GENERATION),
        (2, BERT),
        (3, MODULES),
        (4, POOLING),
        (4, new_pooling),
        (5, LENGTH),
        (6, PROMPTS),
        (7, TOKENIZER_CONFIG),
    ];
    files.into_iter().map(|(which, file)| behind(which, file)).collect()
}

/// A tokenizer of each kind, with a part of each kind somewhere.
pub fn tokenizer() -> Vec<Vec<u8>> {
    let added = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": true, "normalized": false, "special": true});
    let whole = |model: Value, normalizer: Value, pre: Value, post: Value, decoder: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0, "<s>"), added(1, "</s>")],
            "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model})
        .to_string()
        .into_bytes()
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
        "vocab": {"<s>": 0, "</s>": 1, "h": 2, "e": 3, "l": 4, "o": 5, "he": 6, "ll": 7, "hell": 8, "Ġ": 9, "<0x20>": 10},
        "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]});
    let words = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"<s>": 0, "</s>": 1, "[UNK]": 2, "hello": 3, "wor": 4, "##ld": 5, "a": 6}});
    let unigram = json!({"type": "Unigram", "unk_id": 2, "byte_fallback": false,
        "vocab": [["<s>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0], ["▁hello", -3.5], ["o", -4.0], ["w", -4.5]]});
    let level =
        json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "hello": 3}});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+"}, "behavior": "Isolated", "invert": false}, bytes]});
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    let replaced = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "NFKC"}, {"type": "Strip", "strip_left": true, "strip_right": true}]});
    let back = json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let piece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let around = json!({"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]});
    vec![
        whole(bpe.clone(), json!({"type": "NFC"}), split, bytes.clone(), bytes.clone()),
        whole(bpe, replaced.clone(), json!(null), template.clone(), back),
        whole(words, bert, json!({"type": "BertPreTokenizer"}), around, piece),
        whole(unigram, replaced, metaspace.clone(), template, metaspace),
        whole(level, json!({"type": "Lowercase"}), json!({"type": "Whitespace"}), json!(null), json!(null)),
    ]
}

pub fn template() -> Vec<Vec<u8>> {
    let config: Value = serde_json::from_str(TOKENIZER_CONFIG).unwrap();
    let qwen3: Value = serde_json::from_str(include_str!("../goldens/qwen3_chat_template.json")).unwrap();
    let own = [
        "{% for m in messages %}{{ m.role ~ ': ' + m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}",
        "{%- set ns = namespace(n=0) -%}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ bos_token }}{{ messages | tojson(indent=2) }}{% generation %}{{ tools[0].function | tojson }}{% endgeneration %}",
        "{% macro row(m) %}{{ m.content | trim | upper }}{% endmacro %}{{ row(messages[0]) }}{{ strftime_now('%d %b %Y') }}",
        "{% if messages[0].content is string and 'e' in messages[0].content %}{{ messages[0].content.split(' ')[-1] }}{% endif %}",
        "{{ raise_exception('no') if messages | length > 3 else messages | map(attribute='role') | join(',') }}{# c #}{% raw %}{{{% endraw %}",
    ];
    let goldens = [&config["chat_template"], &qwen3["template"]].map(|source| source.as_str().unwrap().to_owned());
    goldens.into_iter().chain(own.map(str::to_owned)).map(String::into_bytes).collect()
}

pub fn dataset() -> Vec<Vec<u8>> {
    let texts = "{\"text\": \"hello w\\u00f6rld\"}\n\n{\"text\": \"b\"}\r\nbroken\n";
    let completions = "\u{feff}{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"prompt\": \"a b c d e f g h i j k l m n o p q\", \"completion\": \"\"}";
    let chats = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"ho\", \"tool_calls\": [1]}], \"tools\": [{}]}\n";
    [(0, texts), (1, completions), (2, texts), (5, chats), (8, completions), (4, chats)]
        .into_iter()
        .map(|(which, rows)| behind(which, rows))
        .collect()
}

/// Files of GGUF: a decoder with its tokenizer, and blocks.
pub fn gguf() -> Vec<Vec<u8>> {
    vec![gguf_decoder(), include_bytes!("../goldens/blocks.gguf").to_vec()]
}

fn gguf_decoder() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let list = |kind: u32, items: &[Vec<u8>]| {
        [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes(), &items.concat()].concat()
    };
    let number = |number: u32| (4u32, number.to_le_bytes().to_vec());
    let words = |words: &[&str]| (9u32, list(8, &words.iter().map(|word| text(word)).collect::<Vec<_>>()));
    let kinds: Vec<Vec<u8>> = (0..16u32).map(|id| if id < 2 { 3u32 } else { 1 }.to_le_bytes().to_vec()).collect();
    let letters = ["<s>", "</s>", "a", "b", "c", "d", "e", "h", "l", "o", "w", "r", "Ġ", "he", "ll", "hell"];
    let keys: Vec<(&str, (u32, Vec<u8>))> = vec![
        ("general.architecture", (8, text("llama"))),
        ("llama.embedding_length", number(8)),
        ("llama.attention.head_count", number(2)),
        ("llama.attention.head_count_kv", number(1)),
        ("llama.feed_forward_length", number(8)),
        ("llama.block_count", number(1)),
        ("llama.context_length", number(32)),
        ("llama.attention.layer_norm_rms_epsilon", (6, 1e-5f32.to_le_bytes().to_vec())),
        ("tokenizer.ggml.model", (8, text("gpt2"))),
        ("tokenizer.ggml.pre", (8, text("smollm"))),
        ("tokenizer.ggml.tokens", words(&letters)),
        ("tokenizer.ggml.merges", words(&["h e", "l l", "he ll"])),
        ("tokenizer.ggml.token_type", (9, list(5, &kinds))),
        ("tokenizer.ggml.bos_token_id", number(0)),
        ("tokenizer.ggml.eos_token_id", number(1)),
        ("tokenizer.ggml.add_bos_token", (7, vec![1])),
    ];
    let tensors: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[8, 16]),
        ("output_norm.weight", &[8]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.attn_v.weight", &[8, 4]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.ffn_gate.weight", &[8, 8]),
        ("blk.0.ffn_up.weight", &[8, 8]),
        ("blk.0.ffn_down.weight", &[8, 8]),
    ];
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, (kind, value)) in &keys {
        out.extend([&text(key)[..], &kind.to_le_bytes(), value].concat());
    }
    let mut offset = 0u64;
    for (name, shape) in tensors {
        out.extend(text(name));
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += shape.iter().product::<u64>() * 4;
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend((0..offset / 4).flat_map(|at| ((at % 7) as f32 * 0.1 - 0.3).to_le_bytes()));
    out
}

/// Command lines, a word on each line.
pub fn arguments() -> Vec<Vec<u8>> {
    let lines = [
        "generate --model m --prompt hello --max-tokens 5 --temperature 0.7 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 7 --stop end",
        "generate --model org/name@main --adapter a --tokens 1,2,3 --logprobs 2 --json --repetition-penalty 1.1",
        "generate --model m --chat --system s --prompt-file - --presence-penalty 0.5 --frequency-penalty 0.5 --dtype q8",
        "chat --model m --adapter a --backend flex",
        "logits --model m --tokens 1,2 --tokens 3 --output o.safetensors",
        "score --model m --data d.jsonl --bad-rows skip --mask-prompt --max-seq-len 64 --over-long split",
        "embed --model m --kind query --input i.jsonl --output o.npy --format npy --dimensions 8 --batch-tokens 64",
        "train --model m --data d --output o --rank 4 --alpha 8 --dropout 0.1 --target q_proj,v_proj --rslora --steps 10",
        "train --model m --data d --output o --epochs 1 --learning-rate 1e-4 --schedule cosine --warmup-steps 2 --dry-run --config c.toml",
        "train --model m --data d --output o --batch-size 2 --gradient-accumulation 2 --max-grad-norm 1 --eval-every 5 --symmetric",
        "merge --model m --adapter a --output o --dtype f16",
        "quantize --model m --to q4 --output o",
        "adapter show a",
        "adapter convert --to mlx a o",
        "bench report --help",
        "doctor --backend flex --json --threads 2 -v --quiet --strict",
    ];
    lines.into_iter().map(|line| line.replace(' ', "\n").into_bytes()).collect()
}
