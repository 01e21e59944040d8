"""GGUF files of a model folder, for llama.cpp: FOLDER-T.gguf beside it, T being f32, f16, q8_0 or q4_0. Called by models.py.

Every matrix that a product reads has the type T, the table of tokens too; vectors and the encoder's small tables are f32.
"""

import json
import os
from pathlib import Path

import gguf
import numpy
from safetensors import safe_open

TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
# What llama.cpp calls a tensor: of the model, and of a layer.
QWEN = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BERT = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
SMALL = ("position_embd", "token_types")


def rename(name: str, names: dict[str, str]) -> str | None:
    """None for what llama.cpp does not read."""
    stem, kind = name.rsplit(".", 1)
    at, part = "", stem
    for prefix in ("model.layers.", "encoder.layer."):
        if stem.startswith(prefix):
            layer, part = stem.removeprefix(prefix).split(".", 1)
            at = f"blk.{layer}."
    return f"{at}{names[part]}.{kind}" if part in names else None


def qwen_settings(writer: gguf.GGUFWriter, config: dict, folder: Path) -> None:
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    # The folder's tokens, then such as nothing is split into: a model's vocabulary may be the larger one.
    size = config["vocab_size"]
    tokens, types = [f"[unused{at}]" for at in range(size)], [gguf.TokenType.UNUSED] * size
    for token, at in tokenizer["model"]["vocab"].items():
        tokens[at], types[at] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def bert_settings(writer: gguf.GGUFWriter, config: dict, folder: Path) -> None:
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    tokens = (folder / "vocab.txt").read_text("utf-8").splitlines()
    special = {name: tokens.index(f"[{name.upper()}]") for name in ("cls", "sep", "unk", "pad", "mask")}
    types = [gguf.TokenType.CONTROL if at in special.values() else gguf.TokenType.NORMAL for at in range(len(tokens))]
    # llama.cpp marks where a word begins, not where it goes on.
    marked = [
        token if at in special.values() else token[2:] if token.startswith("##") else f"\u2581{token}"
        for at, token in enumerate(tokens)
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(marked)
    writer.add_token_types(types)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_bos_token_id(special["cls"])
    writer.add_sep_token_id(special["sep"])
    writer.add_unk_token_id(special["unk"])
    writer.add_pad_token_id(special["pad"])
    writer.add_mask_token_id(special["mask"])


ARCHITECTURES = {"qwen2": (QWEN, qwen_settings), "bert": (BERT, bert_settings)}


def write(folder: Path, path: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    names, settings = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if name == "f32" else gguf.LlamaFileType[f"MOSTLY_{TYPES[name]}"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    settings(writer, config, folder)

    # One tensor in memory at a time: first what they are, then their data in the same order.
    with safe_open(folder / "model.safetensors", "np") as file:
        stored = []
        for key in file.keys():
            new, shape = rename(key, names), file.get_slice(key).get_shape()
            if new is None:
                continue
            is_plain = len(shape) == 1 or new.split(".")[0] in SMALL
            kind = gguf.GGMLQuantizationType[TYPES["f32" if is_plain else name]]
            dtype = {"F32": numpy.float32, "F16": numpy.float16}.get(kind.name, numpy.uint8)
            shape = shape if dtype != numpy.uint8 else gguf.quant_shape_to_byte_shape(shape, kind)
            size = int(numpy.prod(shape)) * numpy.dtype(dtype).itemsize
            writer.add_tensor_info(new, shape, numpy.dtype(dtype), size, kind if dtype == numpy.uint8 else None)
            stored.append((key, kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, kind in stored:
            writer.write_tensor_data(gguf.quants.quantize(file.get_tensor(key).astype(numpy.float32), kind))
    writer.close()


def write_all(folder: Path) -> None:
    """Kept where they are newer than the weights and this file."""
    newest = max(path.stat().st_mtime for path in (Path(__file__), folder / "model.safetensors"))
    for name in TYPES:
        path = folder.with_name(f"{folder.name}-{name}.gguf")
        if path.exists() and path.stat().st_mtime > newest:
            print(f"{path}: up to date")
            continue
        part = path.with_suffix(".part")
        write(folder, part, name)
        os.replace(part, path)
        print(f"{path}: made")
