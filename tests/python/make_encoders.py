"""make_encoders.py OUT: tiny random encoders, one for each option of the family, with the hidden states of transformers.

OUT/NAME/ holds config.json and model.safetensors as `save_pretrained` writes them, and golden.safetensors: `input_ids` and
`attention_mask`, padded on the right, and f32 `hidden`. That each option shows in the hidden states is checked here; tests/encoder.rs
compares.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig, BertForMaskedLM, RobertaConfig, XLMRobertaConfig, set_seed

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,  # large, so that every option shows
}
# Name -> config class, its options, the same with the option otherwise (None where the shapes would not fit).
VARIANTS = {
    "xlm-roberta": (XLMRobertaConfig, {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}, {"pad_token_id": 3}),
    "roberta-padding-3": (RobertaConfig, {"type_vocab_size": 1, "pad_token_id": 3}, {"pad_token_id": 1}),
    "bert-epsilon": (BertConfig, {"layer_norm_eps": 0.5}, {"layer_norm_eps": 1e-12}),
    "bert-one-type": (BertConfig, {"type_vocab_size": 1}, None),
    # Names begin with `bert.`, and the head of pre-training is in the file.
    "bert-masked-lm": (BertConfig, {}, None),
}
LENGTHS = [17, 1, 5, 36]


def build(name: str, kind: type, options: dict):
    config = kind(**SIZES | options)
    config._attn_implementation = "eager"
    set_seed(0)
    if name == "bert-masked-lm":
        model = BertForMaskedLM(config)
    else:
        model = AutoModel.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)  # zero otherwise
        elif name.endswith("LayerNorm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)  # one otherwise
    return model.eval()


@torch.no_grad()
def hidden(folder: Path, ids: torch.Tensor, mask: torch.Tensor, **other) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **other).eval()
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def make(folder: Path, kind: type, options: dict, other: dict | None) -> None:
    build(folder.name, kind, options).save_pretrained(folder)
    pad = options.get("pad_token_id", 0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), pad)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(5, SIZES["vocab_size"], (length,), generator=generator)
        mask[row, :length] = 1
    expected = hidden(folder, ids, mask)
    if other is not None:
        difference = ((hidden(folder, ids, mask, **other) - expected) * mask[..., None]).abs().max().item()
        assert difference > 0.1, f"{folder.name}: the option changes the hidden states by {difference} only"
        print(f"{folder.name}: the option moves a hidden state by {difference:.2f}")
    save_file({"input_ids": ids, "attention_mask": mask, "hidden": expected.contiguous()}, folder / "golden.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for name, (kind, options, other) in VARIANTS.items():
        make(arguments.out / name, kind, options, other)
