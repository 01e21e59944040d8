"""The values of every workload as NumPy computes them, one plain line after another: what check.py compares the peers with.

`answer(workload, i)` is for input number i. For `lora_step` it is the loss before the first step, which later ones are near.
"""

import json
from pathlib import Path

import numpy
from protocol import counted_labels, inputs, token_ids, values


def softmax(x):
    exponentials = numpy.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def layer_norm(x, weight, bias, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def rms_norm(x, weight, epsilon):
    return x / numpy.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def silu(x):
    return x / (1 + numpy.exp(-x))


def rope(x):
    tokens, _, dim = x.shape
    angles = numpy.arange(tokens)[:, None] * 1e6 ** (-numpy.arange(0, dim, 2) / dim)
    cos, sin = numpy.cos(angles)[:, None], numpy.sin(angles)[:, None]
    low, high = x[..., : dim // 2], x[..., dim // 2 :]
    return numpy.concatenate((low * cos - high * sin, high * cos + low * sin), -1)


def attention(q, k, v, causal=True):
    """[tokens, heads, dim] each; k and v may have fewer heads."""
    k, v = (x.repeat(q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = numpy.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores += numpy.triu(numpy.full(scores.shape[1:], -numpy.inf), 1)
    return numpy.einsum("hqk,khd->qhd", softmax(scores), v)


def read_folder(folder):
    from safetensors import safe_open

    with safe_open(Path(folder) / "model.safetensors", "np") as file:
        weights = {name: file.get_tensor(name).astype(numpy.float64) for name in file.keys()}
    return json.loads((Path(folder) / "config.json").read_text()), weights


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def qwen(folder, ids):
    """Logits of every position."""
    config, weights = read_folder(folder)
    heads, kv_heads, epsilon = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        normed = rms_norm(x, weights[f"{at}.input_layernorm.weight"], epsilon)
        q, k, v = (
            linear(weights, f"{at}.self_attn.{name}_proj", normed).reshape(len(ids), count, -1)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        x = x + linear(weights, f"{at}.self_attn.o_proj", attention(rope(q), rope(k), v).reshape(len(ids), -1))
        normed = rms_norm(x, weights[f"{at}.post_attention_layernorm.weight"], epsilon)
        gate, up = (linear(weights, f"{at}.mlp.{name}_proj", normed) for name in ("gate", "up"))
        x = x + linear(weights, f"{at}.mlp.down_proj", silu(gate) * up)
    return rms_norm(x, weights["model.norm.weight"], epsilon) @ weights["model.embed_tokens.weight"].T


def bert(folder, text):
    """The unit vector of one text: mean of the hidden states of a BERT."""
    from math import erf

    from tokenizers import Tokenizer

    config, weights = read_folder(folder)
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    ids, epsilon = tokenizer.encode(text).ids, config["layer_norm_eps"]

    def norm(name, x):
        return layer_norm(x, weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"], epsilon)

    table = {name: weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    x = norm("embeddings", table["word"][ids] + table["position"][: len(ids)] + table["token_type"][0])
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            linear(weights, f"{at}.attention.self.{name}", x).reshape(len(ids), config["num_attention_heads"], -1)
            for name in ("query", "key", "value")
        )
        mixed = attention(q, k, v, causal=False).reshape(len(ids), -1)
        x = norm(f"{at}.attention.output", x + linear(weights, f"{at}.attention.output.dense", mixed))
        wide = linear(weights, f"{at}.intermediate.dense", x)
        wide = wide * (1 + numpy.vectorize(erf)(wide / 2**0.5)) / 2
        x = norm(f"{at}.output", x + linear(weights, f"{at}.output.dense", wide))
    mean = x.mean(0)
    return mean / numpy.linalg.norm(mean)


def ends(x):
    rows = x.reshape(-1, x.shape[-1])
    return [*rows[0, :4], *rows[-1, :4]]


def of_rows(op):
    def compute(w, i):
        width = w["width"]
        return ends(op(inputs((w["rows"], width))[i].astype(float), values((width,), 2), values((width,), 3)))

    return compute


def matmul(w, i):
    return ends(inputs((w["rows"], w["inputs"]))[i].astype(float) @ values((w["outputs"], w["inputs"]), 2).T)


def lora_forward(w, i):
    features, rank = w["features"], w["rank"]
    x = inputs((w["rows"], features))[i].astype(float)
    return ends(x @ values((features, features), 2).T + 2 * (x @ values((rank, features), 3).T) @ values((features, rank), 4).T)


def grouped_attention(w, i):
    k, v = (values((w["tokens"], w["kv_heads"], w["dim"]), seed).astype(float) for seed in (2, 3))
    return ends(attention(inputs((w["tokens"], w["heads"], w["dim"]))[i].astype(float), k, v))


def embedding(w, i):
    return ends(values((w["vocabulary"], w["hidden"]), 2)[token_ids(w["tokens"], w["vocabulary"])[i]])


def mlp(w, i):
    hidden, wide = w["hidden"], w["intermediate"]
    x, shapes = inputs((w["tokens"], hidden))[i].astype(float), ((wide, hidden), (wide, hidden), (hidden, wide))
    gate, up, down = (values(shape, seed) * 0.05 for seed, shape in enumerate(shapes, 2))
    return ends((silu(x @ gate.T) * (x @ up.T)) @ down.T)


def generate(w, i):
    ids = list(token_ids(w["prompt"])[i])
    for _ in range(min(8, w["tokens"])):
        ids.append(int(qwen(w["model"], ids)[-1].argmax()))
    return ids[w["prompt"] :]


def lora_step(w, i):
    ids = token_ids(w["tokens"])[i]
    labels = counted_labels(ids, w["counted"])[1:]
    logits = qwen(w["model"], ids)[:-1]
    largest = logits.max(-1)
    losses = largest + numpy.log(numpy.exp(logits - largest[:, None]).sum(-1)) - logits[numpy.arange(len(labels)), labels]
    return [losses[labels >= 0].mean()]


WORKLOADS = {
    "softmax": of_rows(lambda x, weight, bias: softmax(x)),
    "layer_norm": of_rows(lambda x, weight, bias: layer_norm(x, weight, bias, 1e-5)),
    "rms_norm": of_rows(lambda x, weight, bias: rms_norm(x, weight, 1e-6)),
    "copy": of_rows(lambda x, weight, bias: x),
    "matmul": matmul,
    "lora_forward": lora_forward,
    "attention": grouped_attention,
    "embedding": embedding,
    "rope": lambda w, i: ends(rope(inputs((w["tokens"], w["heads"], w["dim"]))[i].astype(float))),
    "mlp": mlp,
    "prefill": lambda w, i: qwen(w["model"], token_ids(w["tokens"])[i])[-1, :8],
    "generate": generate,
    "lora_step": lora_step,
    "embed": lambda w, i: bert(w["model"], w["texts"][i][0])[:8],
}


def answer(workload: dict, i: int) -> list[float]:
    return [float(value) for value in WORKLOADS[workload["workload"]](workload, i)]
