"""mlx_logits.py BASE TOKENS OUT.safetensors [--adapter DIR]: mlx-lm's logits on the CPU in f32.

Arguments and output are those of logits.py; DIR is an adapter in mlx-lm's format.
"""

import argparse
from pathlib import Path

from logits import read_tokens, write_logits

import mlx.core as mx
import numpy
from mlx_lm.utils import load_adapters, load_model


def load(base: Path, adapter: Path | None):
    model, _ = load_model(base)
    if adapter:
        model = load_adapters(model, str(adapter))  # refuses a tensor that has no place
    model.set_dtype(mx.float32)
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("tokens")
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    model = load(arguments.base, arguments.adapter)
    write_logits(
        arguments.out,
        read_tokens(arguments.tokens),
        lambda ids: numpy.array(model(mx.array([ids]))[0].astype(mx.float32)),
    )
