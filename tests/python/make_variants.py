"""make_variants.py OUT: tiny random decoders, one for each config option of the family, with the logits of transformers.

OUT/NAME/ holds config.json as `save_pretrained` of transformers 5 writes it, old_config.json with the same meaning in the
form older versions wrote, model.safetensors, and golden.safetensors: `input_ids` and f32 `logits`. That both configs give
the same logits, and that switching the option off gives others, is checked here. tests/variants.rs compares.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, set_seed

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large, so that every option shows in the logits
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
# Name -> config class, its options, what switches them off (None where the shapes would not fit), length of the sequence.
VARIANTS = {
    "llama-rope-llama3": (LlamaConfig, {"rope_parameters": LLAMA3}, {"rope_type": "default"}, 48),
    "qwen2-rope-yarn": (Qwen2Config, {"rope_parameters": YARN}, {"rope_type": "default"}, 48),
    "qwen2-rope-linear": (
        Qwen2Config,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
        {"rope_type": "default"},
        24,
    ),
    "qwen2-sliding-window": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"use_sliding_window": False},
        24,
    ),
    "qwen3-layer-types": (
        Qwen3Config,
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"layer_types": ["full_attention", "sliding_attention"]},
        24,
    ),
    "qwen3-attention-bias": (Qwen3Config, {"head_dim": 16, "attention_bias": True}, {"attention_bias": False}, 12),
    "llama-biases": (
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True},
        {"attention_bias": False, "mlp_bias": False},
        12,
    ),
    # 4 heads of 8 where hidden_size / heads is 16.
    "llama-head-dim": (LlamaConfig, {"head_dim": 8, "tie_word_embeddings": False}, None, 12),
}


def build(kind: type, options: dict):
    config = kind(**SIZES | options, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    config._attn_implementation = "eager"
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)  # zero otherwise
        elif name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)  # one otherwise
    return model


def load(folder: Path):
    """From the files, not from memory: what is tested is what the config on disk means."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits


def old_form(config: dict) -> dict:
    """The keys of transformers 4: `rope_theta` at the top, scaling beside it with `type`, `torch_dtype`, no `layer_types`."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    # Llama 3.1 and later wrote `rope_type`, those before it `type`.
    name = "rope_type" if kind == "llama3" else "type"
    old["rope_scaling"] = None if kind == "default" else {name: kind} | rope
    old["torch_dtype"] = config["dtype"]
    old["transformers_version"] = "4.45.0"
    types = config.get("layer_types")
    if types and "max_window_layers" in config:
        # The older form can only say that layers from one on slide.
        first = types.index("sliding_attention") if "sliding_attention" in types else len(types)
        if "full_attention" in types[first:]:
            old["layer_types"] = types
        else:
            old["max_window_layers"] = first
    return old


def other_config(folder: Path, config: dict, work: Path):
    work.mkdir(exist_ok=True)
    shutil.copyfile(folder / "model.safetensors", work / "model.safetensors")
    (work / "config.json").write_text(json.dumps(config))
    return load(work)


def make(folder: Path, work: Path, kind: type, options: dict, off: dict | None, length: int) -> None:
    build(kind, options).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.randint(0, SIZES["vocab_size"], (1, length), generator=torch.Generator().manual_seed(1))
    expected = logits(load(folder), ids)
    config = json.loads((folder / "config.json").read_text())

    old = old_form(config)
    (folder / "old_config.json").write_text(json.dumps(old, indent=2) + "\n")
    assert torch.equal(logits(other_config(folder, old, work), ids), expected), f"{folder.name}: the old form differs"

    if off is not None:
        if "rope_type" in off:
            off = {"rope_parameters": {"rope_theta": options["rope_parameters"]["rope_theta"]} | off}
        elif "use_sliding_window" in off:
            off = off | {"layer_types": None}
        difference = (logits(other_config(folder, config | off, work), ids) - expected).abs().max().item()
        assert difference > 0.1, f"{folder.name}: the option changes the logits by {difference} only"
        print(f"{folder.name}: the option moves a logit by {difference:.2f}")

    save_file({"input_ids": ids, "logits": expected.contiguous()}, folder / "golden.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    scratch = arguments.out / "scratch"
    for name, (kind, options, off, length) in VARIANTS.items():
        make(arguments.out / name, scratch, kind, options, off, length)
    shutil.rmtree(scratch)
