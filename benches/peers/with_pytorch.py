"""PyTorch, and transformers where a workload has a model. Started by serve.py.

f16 means that weights and activations are both float16, since torch's matrix products take one type; f32 loads an f16 folder as f32.
`generate` is a loop of forward passes over transformers' cache: `generate()` itself computes the same and adds its own bookkeeping.
"""

import os
import time
from importlib.metadata import version

import numpy
import torch
import torch.nn.functional as f
from protocol import THREADS, Unsupported, Work, inputs, look_up, token_ids, values

torch.set_num_threads(THREADS)
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def versions() -> dict:
    return {name: version(name) for name in ("torch", "transformers")}


def finish() -> None:
    if DEVICE.startswith("cuda"):
        torch.cuda.synchronize()
    elif DEVICE == "mps":
        torch.mps.synchronize()


def dtype(w: dict) -> torch.dtype:
    name = w.get("dtype", "f32")
    if name not in DTYPES:
        raise Unsupported(f"dtype {name}")
    return DTYPES[name]


def tensor(w: dict, array) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE, dtype(w))


def tensors(w: dict, shape: tuple[int, ...]) -> list[torch.Tensor]:
    return [tensor(w, array) for array in inputs(shape)]


def ends(result: torch.Tensor) -> list[float]:
    """Four values of the first row, four of the last; a row is the last axis."""
    rows = result.flatten(0, -2)
    return torch.cat((rows[0, :4], rows[-1, :4])).float().tolist()


def row_op(op):
    def prepare(w):
        width = w["width"]
        x = tensors(w, (w["rows"], width))
        weight, bias = tensor(w, values((width,), 2)), tensor(w, values((width,), 3))
        return Work(lambda i: op(x[i], width, weight, bias), ends, finish)

    return prepare


def matmul(w):
    x, weight = tensors(w, (w["rows"], w["inputs"])), tensor(w, values((w["outputs"], w["inputs"]), 2))
    return Work(lambda i: f.linear(x[i], weight), ends, finish)


def lora_forward(w):
    features, rank = w["features"], w["rank"]
    x, weight = tensors(w, (w["rows"], features)), tensor(w, values((features, features), 2))
    a, b = tensor(w, values((rank, features), 3)), tensor(w, values((features, rank), 4))
    return Work(lambda i: f.linear(x[i], weight) + 2 * f.linear(f.linear(x[i], a), b), ends, finish)


def attention(w):
    tokens, dim = w["tokens"], w["dim"]
    queries = tensors(w, (tokens, w["heads"], dim))
    k, v = (tensor(w, values((tokens, w["kv_heads"], dim), seed)).transpose(0, 1)[None] for seed in (2, 3))

    def call(i):
        q = queries[i].transpose(0, 1)[None]
        return f.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    return Work(call, ends, finish)


def embedding(w):
    table = tensor(w, values((w["vocabulary"], w["hidden"]), 2))
    ids = [torch.from_numpy(row).to(DEVICE) for row in token_ids(w["tokens"], w["vocabulary"])]
    return Work(lambda i: f.embedding(ids[i], table), ends, finish)


def rope(w):
    tokens, dim = w["tokens"], w["dim"]
    x = tensors(w, (tokens, w["heads"], dim))
    frequencies = 1e6 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies
    angles = torch.cat((angles, angles), -1)[:, None, :]
    cos, sin = angles.cos().to(DEVICE, dtype(w)), angles.sin().to(DEVICE, dtype(w))

    def call(i):
        low, high = x[i].chunk(2, -1)
        return x[i] * cos + torch.cat((-high, low), -1) * sin

    return Work(call, ends, finish)


def mlp(w):
    hidden, wide = w["hidden"], w["intermediate"]
    x = tensors(w, (w["tokens"], hidden))
    shapes = ((wide, hidden), (wide, hidden), (hidden, wide))
    gate, up, down = (tensor(w, values(shape, seed) * numpy.float32(0.05)) for seed, shape in enumerate(shapes, 2))
    return Work(lambda i: f.linear(f.silu(f.linear(x[i], gate)) * f.linear(x[i], up), down), ends, finish)


def load(w: dict):
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM.from_pretrained(w["model"], dtype=dtype(w)).to(DEVICE).eval()


def id_rows(count: int) -> list[torch.Tensor]:
    return [torch.from_numpy(row)[None].to(DEVICE) for row in token_ids(count)]


def prefill(w):
    model, ids = load(w), id_rows(w["tokens"])

    def call(i):
        # With a cache, as a prefill is run for.
        return model(input_ids=ids[i], use_cache=True, logits_to_keep=1).logits

    return Work(call, lambda logits: logits[0, -1, :8].float().tolist(), finish)


def generate(w):
    model, ids, parts, tokens = load(w), id_rows(w["prompt"]), {}, w["tokens"]

    def call(i):
        begun = time.perf_counter()
        result = model(input_ids=ids[i], use_cache=True, logits_to_keep=1)
        made = [result.logits[:, -1].argmax(-1, keepdim=True)]
        finish()
        first = time.perf_counter()
        while len(made) < tokens:
            result = model(input_ids=made[-1], past_key_values=result.past_key_values, use_cache=True, logits_to_keep=1)
            made.append(result.logits[:, -1].argmax(-1, keepdim=True))
        finish()
        parts["first_token"] = first - begun
        if tokens > 1:
            parts["per_token"] = (time.perf_counter() - first) / (tokens - 1)
        return made

    return Work(call, lambda made: [int(token) for token in made[:8]], finish, parts)


WORKLOADS = {
    "softmax": row_op(lambda x, width, weight, bias: torch.softmax(x, -1)),
    "layer_norm": row_op(lambda x, width, weight, bias: f.layer_norm(x, (width,), weight, bias, 1e-5)),
    "rms_norm": row_op(lambda x, width, weight, bias: f.rms_norm(x, (width,), weight, 1e-6)),
    "copy": row_op(lambda x, width, weight, bias: x.clone()),
    "matmul": matmul,
    "lora_forward": lora_forward,
    "attention": attention,
    "embedding": embedding,
    "rope": rope,
    "mlp": mlp,
    "prefill": prefill,
    "generate": generate,
}


def prepare(w: dict) -> Work:
    torch.set_grad_enabled(False)
    return look_up(WORKLOADS, w)
