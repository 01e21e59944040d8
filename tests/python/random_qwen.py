"""random_qwen.py OUT: a Qwen2 folder with random weights, for tests of memory and speed at a real model's shape.

Needs numpy only. Tensors are written one after another, so memory stays at one tensor's size. Linear and embedding
weights and biases are normal(0, 0.02), norms are 1. The tokenizer is that of rust-tiny: it makes ids below 4,096,
and has no token for most of the ids that such a model generates.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy

from folder import build_folder

# What differs between the shapes; `qwen2.5-0.5b` has the numbers of Qwen/Qwen2.5-0.5B-Instruct's config.json.
SHAPES = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": 4096,
        "bos_token_id": 4093,
        "eos_token_id": 4095,
    },
}
DTYPES = {"f16": ("F16", 2, "float16"), "bf16": ("BF16", 2, "bfloat16"), "f32": ("F32", 4, "float32")}


def config(shape: str, dtype: str) -> dict:
    sizes = SHAPES[shape]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": sizes["num_hidden_layers"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": sizes["max_position_embeddings"],
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": DTYPES[dtype][2],
        "use_cache": True,
    } | sizes


def tensors(c: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    hidden, wide = c["hidden_size"], c["intermediate_size"]
    kv = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (rows, hidden)
            shapes[f"{layer}.self_attn.{name}.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (wide, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (wide, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, wide)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    return shapes | {"model.norm.weight": (hidden,)}


def encode(values: numpy.ndarray, dtype: str) -> bytes:
    """f32 values in the file's format; numpy has no bf16: round the upper half to nearest even."""
    if dtype == "bf16":
        bits = values.view(numpy.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16).tobytes()
    return values.astype(DTYPES[dtype][2]).tobytes()


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    """A safetensors file: length of the header, header, then the tensors in the header's order."""
    code, size, _ = DTYPES[dtype]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts aligned
    generator = numpy.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if "norm" in name:
                values = numpy.ones(shape, numpy.float32)
            else:
                values = generator.standard_normal(shape, numpy.float32)
                values *= numpy.float32(0.02)
            file.write(encode(values, dtype))


def find_tokenizer() -> Path:
    """rust-tiny in the repository, or beside it."""
    root = Path(__file__).resolve().parents[2]
    places = [root / "examples/tiny/rust-tiny", root.parent / "shared/tiny/rust-tiny"]
    for place in places:
        if (place / "tokenizer.json").exists():
            return place
    raise SystemExit(f"error: no tokenizer.json in {' or '.join(map(str, places))}: name a folder with --tokenizer")


def write(out: Path, arguments: argparse.Namespace, tokenizer: Path) -> None:
    settings = config(arguments.shape, arguments.dtype)
    write_weights(out / "model.safetensors", tensors(settings), arguments.dtype, arguments.seed)
    ends = {"do_sample": False, "eos_token_id": settings["eos_token_id"]}
    (out / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (out / "generation_config.json").write_text(json.dumps(ends, indent=1) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, out / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--dtype", choices=DTYPES, default="f16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: rust-tiny")
    arguments = parser.parse_args()
    tokenizer = arguments.tokenizer or find_tokenizer()
    build_folder(
        arguments.out,
        f"{arguments.shape} {arguments.dtype} {arguments.seed} {(tokenizer / 'tokenizer.json').read_text('utf-8')}",
        lambda out: write(out, arguments, tokenizer),
    )
