"""PEFT over transformers, with torch's AdamW: `lora_step`. Started by serve.py.

Every call is one step on from the one before it, from the adapter that get_peft_model makes. With f16 the base is float16 and the adapter
float32, as PEFT makes it.
"""

import time
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from protocol import Unsupported, Work, counted_labels, look_up, token_ids
from with_pytorch import DEVICE, finish, load


def versions() -> dict:
    return {name: version(name) for name in ("peft", "torch", "transformers")}


def lora_step(w):
    if w["counted"] not in ("all", "half"):
        raise Unsupported(f"counted {w['counted']}")
    rank = w["rank"]
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    model = get_peft_model(load(w), config).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    batches = [
        [torch.from_numpy(row)[None].to(DEVICE) for row in (ids, counted_labels(ids, w["counted"]))]
        for ids in token_ids(w["tokens"])
    ]
    parts = {}

    def call(i):
        ids, labels = batches[i]
        times = [time.perf_counter()]

        def part():
            finish()
            times.append(time.perf_counter())

        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        part()
        loss.backward()
        part()
        optimizer.step()
        optimizer.zero_grad()
        part()
        parts.update(zip(("forward", "backward", "optimizer"), (b - a for a, b in zip(times, times[1:]))))
        return loss.detach()

    return Work(call, lambda loss: [float(loss)], finish, parts)


def prepare(w: dict) -> Work:
    torch.set_grad_enabled(True)
    return look_up({"lora_step": lora_step}, w)
