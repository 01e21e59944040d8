"""mlx_dataset.py BASE OUT.json: rows as mlx-lm makes tokens of them, and the weight its loss gives to each.

The rows are below; BASE is the folder of a tokenizer. Prompts that are not how the whole row begins are left out: there mlx-lm counts
the prompt's tokens, and we look for where the two part.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
from mlx_lm.tuner.datasets import create_dataset
from mlx_lm.tuner.trainer import default_loss, iterate_batches
from transformers import AutoTokenizer

COMPLETIONS = [
    {"prompt": "Explain E0382.", "completion": "A value was used after it was moved."},
    {"prompt": "Größe, 数, 🦀?", "completion": " e\u0301 becomes é\n\tand so on.\n", "source": "ignored"},
    {"prompt": "", "completion": "no prompt"},
    {"prompt": "no completion", "completion": ""},
    {"completion": "\n\n  keys the other way round", "prompt": "spaces at the end   "},
    {"prompt": "a<|im_end|>b", "completion": "c<|endoftext|>"},
    {"prompt": "also a text", "completion": "as a completion", "text": "ignored", "messages": []},
]
MESSAGES = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello there."}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Is `str` sized?"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Is `&str`?"},
            {"role": "assistant", "content": "Yes: 16 bytes.", "name": "ignored"},
        ],
        "text": "ignored",
    },
    {"messages": [{"role": "user", "content": "A question"}, {"role": "user", "content": "and no answer"}]},
    {"messages": [{"role": "assistant", "content": "I begin."}, {"role": "tool", "content": "{\"ok\": 1}"}]},
]
ONE_MESSAGE = [{"messages": [{"role": "user", "content": "alone"}]}]
TEXTS = [
    {"text": "fn main() {\n    println!(\"{}\", 1);\n}\n"},
    {"text": "ends by itself<|im_end|>", "source": "ignored"},
    {"text": "ends<|im_end|>\n"},
    {"text": "e\u0301 🦀\r\n\u0000 ", "prompt": "ignored"},
    {"text": "a"},
]
PARAMETERS = {"type": "object", "properties": {"q": {"type": "string", "description": "<é & \"ü\">"}}}
TOOLS = [{"type": "function", "function": {"name": "find", "description": "Finds", "parameters": PARAMETERS}}]
TOOL_ROWS = [
    {"messages": MESSAGES[1]["messages"], "tools": TOOLS},
    {"messages": MESSAGES[2]["messages"], "tools": TOOLS},
    {"messages": MESSAGES[0]["messages"], "tools": None},
    {"messages": MESSAGES[0]["messages"]},
]
TOOL_COMPLETIONS = [COMPLETIONS[0], COMPLETIONS[0] | {"tools": TOOLS}]
TOOL_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif -%}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)

# Name, rows, mask_prompt, max_tokens, template (None: the tokenizer's own).
CASES = [
    ("completions", COMPLETIONS, False, 2048, None),
    ("completions masked", COMPLETIONS, True, 2048, None),
    ("completions masked and cut", COMPLETIONS, True, 24, None),
    ("messages", MESSAGES + ONE_MESSAGE, False, 2048, None),
    ("messages masked", MESSAGES, True, 2048, None),
    ("texts", TEXTS, False, 2048, None),
    ("texts cut", TEXTS, False, 5, None),
    ("tools", TOOL_ROWS, False, 2048, TOOL_TEMPLATE),
    ("tools masked", TOOL_ROWS, True, 2048, TOOL_TEMPLATE),
    ("completions with tools masked", TOOL_COMPLETIONS, True, 2048, TOOL_TEMPLATE),
]


def example(processed, max_tokens: int, vocabulary: int) -> dict:
    """One row as the trainer's batch of one, and where its loss has a gradient."""
    batch, lengths = next(iterate_batches([processed], 1, max_tokens))
    length = lengths[0, 1].item()
    # The batch is padded to at least one token more, which mlx-lm's loss counts too; it is no part of the row.
    logits = mx.zeros((1, batch.shape[1] - 1, vocabulary))
    _, count = default_loss(lambda _: logits, batch, lengths)
    weights = [0.0] * length
    if count.item() > 0:
        gradient = mx.grad(lambda x: default_loss(lambda _: x, batch, lengths)[0])(logits)
        weighted = (mx.abs(gradient).sum(axis=-1) > 0)[0].tolist()
        weights = [0.0] + [float(value) for value in weighted[: length - 1]]
    return {"tokens": batch[0, :length].tolist(), "weights": weights}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    cases = []
    for name, rows, mask_prompt, max_tokens, template in CASES:
        tokenizer = AutoTokenizer.from_pretrained(arguments.base)
        if template:
            tokenizer.chat_template = template
        dataset = create_dataset(rows, tokenizer, SimpleNamespace(mask_prompt=mask_prompt))
        processed = [dataset.process(dataset[index]) for index in range(len(dataset))]
        cases.append(
            {
                "name": name,
                "mask_prompt": mask_prompt,
                "max_tokens": max_tokens,
                "template": template,
                "rows": rows,
                "examples": [example(row, max_tokens, len(tokenizer)) for row in processed],
            }
        )
    versions = {package: version(package) for package in ("mlx-lm", "mlx", "transformers", "tokenizers")}
    lines = ",\n".join(json.dumps(case) for case in cases)
    arguments.out.write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')
