"""MLX, and mlx-lm where a workload has a model. Started by serve.py. BENCH_DEVICE is cpu (the default) or gpu.

MLX computes when asked to: every call ends in mx.eval of its result. f16 means that weights and activations are both float16; f32 loads an
f16 folder as f32. The parts of `lora_step` are evaluated one after another, so that each has a time.

MLX's CPU build for Linux comes with the reference BLAS, whose matrix products use one thread and no vector instructions to speak of: on
that device a figure with a matrix product in it says nothing about MLX elsewhere.
"""

import os
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy
from protocol import Unsupported, Work, counted_labels, inputs, look_up, token_ids, values

DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
if DEVICE not in ("cpu", "gpu"):
    raise Unsupported(f"MLX has cpu and gpu, not {DEVICE}")
mx.set_default_device(getattr(mx, DEVICE))
DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def versions() -> dict:
    return {name: version(name) for name in ("mlx", "mlx-lm")}


def dtype(w: dict) -> mx.Dtype:
    name = w.get("dtype", "f32")
    if name not in DTYPES:
        raise Unsupported(f"dtype {name}")
    return DTYPES[name]


def tensor(w: dict, array) -> mx.array:
    result = mx.array(array).astype(dtype(w))
    mx.eval(result)
    return result


def tensors(w: dict, shape: tuple[int, ...]) -> list[mx.array]:
    return [tensor(w, array) for array in inputs(shape)]


def ends(result: mx.array) -> list[float]:
    """Four values of the first row, four of the last; a row is the last axis."""
    rows = result.reshape(-1, result.shape[-1])
    return mx.concatenate((rows[0, :4], rows[-1, :4])).tolist()


def evaluated(compute, read=ends) -> Work:
    def call(i):
        result = compute(i)
        mx.eval(result)
        return result

    return Work(call, read)


def row_op(op):
    def prepare(w):
        x = tensors(w, (w["rows"], w["width"]))
        weight, bias = (tensor(w, values((w["width"],), seed)) for seed in (2, 3))
        return evaluated(lambda i: op(x[i], weight, bias))

    return prepare


def matmul(w):
    x, weight = tensors(w, (w["rows"], w["inputs"])), tensor(w, values((w["outputs"], w["inputs"]), 2))
    return evaluated(lambda i: x[i] @ weight.T)


def lora_forward(w):
    features, rank = w["features"], w["rank"]
    x, weight = tensors(w, (w["rows"], features)), tensor(w, values((features, features), 2))
    a, b = tensor(w, values((rank, features), 3)), tensor(w, values((features, rank), 4))
    return evaluated(lambda i: x[i] @ weight.T + 2 * ((x[i] @ a.T) @ b.T))


def heads_first(x: mx.array) -> mx.array:
    """[tokens, heads, dim] as [1, heads, tokens, dim], and back."""
    return x.transpose(1, 0, 2)[None]


def attention(w):
    tokens, dim = w["tokens"], w["dim"]
    q = tensors(w, (tokens, w["heads"], dim))
    k, v = (heads_first(tensor(w, values((tokens, w["kv_heads"], dim), seed))) for seed in (2, 3))

    def compute(i):
        result = mx.fast.scaled_dot_product_attention(heads_first(q[i]), k, v, scale=dim**-0.5, mask="causal")
        return result[0].transpose(1, 0, 2)

    return evaluated(compute)


def embedding(w):
    table = tensor(w, values((w["vocabulary"], w["hidden"]), 2))
    ids = [mx.array(row) for row in token_ids(w["tokens"], w["vocabulary"])]
    return evaluated(lambda i: table[ids[i]])


def rope(w):
    x = tensors(w, (w["tokens"], w["heads"], w["dim"]))

    def compute(i):
        result = mx.fast.rope(heads_first(x[i]), w["dim"], traditional=False, base=1e6, scale=1.0, offset=0)
        return result[0].transpose(1, 0, 2)

    return evaluated(compute)


def mlp(w):
    from mlx_lm.models.activations import swiglu

    hidden, wide = w["hidden"], w["intermediate"]
    x, shapes = tensors(w, (w["tokens"], hidden)), ((wide, hidden), (wide, hidden), (hidden, wide))
    gate, up, down = (tensor(w, values(shape, seed) * numpy.float32(0.05)) for seed, shape in enumerate(shapes, 2))
    return evaluated(lambda i: swiglu(x[i] @ gate.T, x[i] @ up.T) @ down.T)


def load(w: dict):
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(w["model"]))
    model.set_dtype(dtype(w))
    mx.eval(model.parameters())
    return model.eval()


def head(model, hidden: mx.array) -> mx.array:
    return model.model.embed_tokens.as_linear(hidden) if model.args.tie_word_embeddings else model.lm_head(hidden)


def last_logits(model, ids: mx.array, cache) -> mx.array:
    """The head on the last position only: the model's own call computes it on all."""
    return head(model, model.model(ids, cache)[:, -1])


def id_rows(count: int) -> list[mx.array]:
    return [mx.array(row)[None] for row in token_ids(count)]


def prefill(w):
    from mlx_lm.models.cache import make_prompt_cache

    model, ids = load(w), id_rows(w["tokens"])
    return evaluated(
        lambda i: last_logits(model, ids[i], make_prompt_cache(model)),
        lambda logits: logits[0, :8].astype(mx.float32).tolist(),
    )


def generate(w):
    from mlx_lm.models.cache import make_prompt_cache

    model, ids, parts, tokens = load(w), id_rows(w["prompt"]), {}, w["tokens"]

    def call(i):
        begun = time.perf_counter()
        cache = make_prompt_cache(model)
        made = [last_logits(model, ids[i], cache).argmax(-1, keepdims=True)]
        mx.eval(made[0])
        first = time.perf_counter()
        while len(made) < tokens:
            made.append(last_logits(model, made[-1], cache).argmax(-1, keepdims=True))
            mx.async_eval(made[-1])  # the next step is laid out while this one is computed
        mx.eval(made)
        parts["first_token"] = first - begun
        if tokens > 1:
            parts["per_token"] = (time.perf_counter() - first) / (tokens - 1)
        return made

    return Work(call, lambda made: [token.item() for token in made[:8]], parts=parts)


def lora_step(w):
    from mlx.optimizers import AdamW
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = load(w)
    model.freeze()
    mx.random.seed(0)
    keys = {"self_attn.q_proj", "self_attn.v_proj"}
    linear_to_lora_layers(model, len(model.layers), {"rank": w["rank"], "scale": 2.0, "dropout": 0.0, "keys": keys})
    model.train()
    mx.eval(model.parameters())
    optimizer = AdamW(1e-4, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, bias_correction=True)
    batches = [
        (mx.array(ids)[None], mx.array(counted_labels(ids, w["counted"]))[None, 1:]) for ids in token_ids(w["tokens"])
    ]

    def loss_of(ids, labels):
        counted = labels >= 0
        losses = nn.losses.cross_entropy(model(ids)[:, :-1].astype(mx.float32), mx.maximum(labels, 0))
        return (losses * counted).sum() / counted.sum()

    step, parts = nn.value_and_grad(model, loss_of), {}

    def call(i):
        times = [time.perf_counter()]

        def part(*results):
            mx.eval(*results)
            times.append(time.perf_counter())

        loss, gradients = step(*batches[i])
        part(loss)
        part(gradients)
        optimizer.update(model, gradients)
        part(model.trainable_parameters(), optimizer.state)
        parts.update(zip(("forward", "backward", "optimizer"), (b - a for a, b in zip(times, times[1:]))))
        return loss

    return Work(call, lambda loss: [loss.item()], parts=parts)


def copy(x, weight, bias):
    """MLX shares the memory of what it is asked to copy; it does not where arrays are joined, even to one without rows."""
    return mx.concatenate((x, x[:0]))


WORKLOADS = {
    "softmax": row_op(lambda x, weight, bias: mx.softmax(x, axis=-1)),
    "layer_norm": row_op(lambda x, weight, bias: mx.fast.layer_norm(x, weight, bias, 1e-5)),
    "rms_norm": row_op(lambda x, weight, bias: mx.fast.rms_norm(x, weight, 1e-6)),
    "copy": row_op(copy),
    "matmul": matmul,
    "lora_forward": lora_forward,
    "attention": attention,
    "embedding": embedding,
    "rope": rope,
    "mlp": mlp,
    "prefill": prefill,
    "generate": generate,
    "lora_step": lora_step,
}


def prepare(w: dict) -> Work:
    return look_up(WORKLOADS, w)
