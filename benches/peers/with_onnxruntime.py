"""ONNX Runtime on the CPU: `embed` of model.onnx (f32) or model-int8.onnx (q8_0), which models.py put into the folder. Started by serve.py.

The library has no tokenizer or pooling of its own: the tokenizers library and NumPy do both, within the clock.
"""

from importlib.metadata import version
from pathlib import Path

import numpy
import onnxruntime
from protocol import THREADS, Unsupported, Work, look_up
from tokenizers import Tokenizer

DEVICE = "cpu"
# Eight bits in its own way: a scale for each tensor of weights, and one for each tensor of activations when they are known.
FILES = {"f32": "model.onnx", "q8_0": "model-int8.onnx"}


def versions() -> dict:
    return {name: version(name) for name in ("onnxruntime", "tokenizers")}


def embed(w):
    folder, texts = Path(w["model"]), w["texts"]
    name = w.get("dtype", "f32")
    if name not in FILES:
        raise Unsupported(f"dtype {name}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(str(folder / FILES[name]), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(512)

    def call(i):
        encoded = tokenizer.encode_batch(texts[i])
        ids, mask = (numpy.array([getattr(row, name) for row in encoded]) for name in ("ids", "attention_mask"))
        hidden = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        weights = mask[..., None].astype(numpy.float32)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        return pooled / numpy.linalg.norm(pooled, axis=1, keepdims=True)

    return Work(call, lambda vectors: [float(value) for value in vectors[0, :8]])


def prepare(w: dict) -> Work:
    return look_up({"embed": embed}, w)
