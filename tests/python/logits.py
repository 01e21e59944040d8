"""logits.py BASE TOKENS OUT.safetensors: transformers' logits of every position, computed in f32.

TOKENS is JSON, or the path of a JSON file: a list of ids, or a list of such lists. OUT holds `logits`
[batch, seq, vocab], rows padded on the right with zeros, and `lengths` [batch]: what `firebrick logits` writes.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy
from safetensors.numpy import save_file


def read_tokens(argument: str) -> list[list[int]]:
    text = argument if argument.lstrip().startswith("[") else Path(argument).read_text()
    tokens = json.loads(text)
    return tokens if isinstance(tokens[0], list) else [tokens]


def write_logits(out: Path, tokens: list[list[int]], forward: Callable[[list[int]], numpy.ndarray]) -> None:
    """Each row alone (so that no mask is involved), then padded together."""
    rows = [forward(row) for row in tokens]
    logits = numpy.zeros((len(rows), max(map(len, rows)), rows[0].shape[-1]), numpy.float32)
    for index, row in enumerate(rows):
        logits[index, : len(row)] = row
    save_file({"logits": logits, "lengths": numpy.array([len(row) for row in rows], numpy.int64)}, out)


def load(base: Path):
    """The model in f32, whatever the file's format."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def forward(model) -> Callable[[list[int]], numpy.ndarray]:
    """Ids -> logits [seq, vocab] of a torch model."""
    import torch

    def run(ids: list[int]) -> numpy.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0].numpy()

    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("tokens")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write_logits(arguments.out, read_tokens(arguments.tokens), forward(load(arguments.base)))
