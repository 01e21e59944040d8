"""smollm2_answers.py FOLDER OUT.json: what transformers answers, greedily and in f32, to five fixed chat prompts.

Per prompt: the ids after the chat template, the new ids (64, or fewer where the end token came: `finish_reason`),
their text, and the smallest distance between the best and the second logit: how far another implementation may
stray before its tokens may rightly differ.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_TOKENS = 64
PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List three uses of the Rust programming language.",
    "If I have 12 apples and give away 5, how many are left?",
]


@torch.no_grad()
def answer(model, tokenizer, prompt: str) -> dict:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    result = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = result.sequences[0, ids.shape[1] :].tolist()
    best = torch.cat(result.logits).topk(2).values
    assert torch.cat(result.logits).argmax(-1).tolist() == new, "not greedy"
    return {
        "prompt": prompt,
        "prompt_text": text,
        "prompt_tokens": ids[0].tolist(),
        "tokens": new,
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "finish_reason": "stop" if new[-1] == model.generation_config.eos_token_id else "length",
        "smallest_margin": (best[:, 0] - best[:, 1]).min().item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    answers = [answer(model, tokenizer, prompt) for prompt in PROMPTS]
    arguments.out.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for one in answers:
        print(f"{one['smallest_margin']:.4f} {len(one['tokens'])} {one['finish_reason']}: {one['prompt']}")
