"""peft_encoder.py BASE ADAPTER SENTENCES.json OUT.safetensors [--make TARGETS]: embeddings with an adapter, as PEFT computes them in f32.

With `--make` the adapter is written first, with random A and B: B starts at zero in PEFT, which would hide every mistake. Mean over the
tokens and unit length, as the base's files must say. A tensor of the adapter's file that PEFT did not take, or one it lacks, is an error.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer


def load(base: Path):
    return AutoModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def embed(model, base: Path, sentences: list[str]) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(base)(sentences, padding=True, truncation=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--make", help="names with commas")
    arguments = parser.parse_args()
    if arguments.make:
        torch.manual_seed(0)
        config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=arguments.make.split(","), r=4, lora_alpha=12)
        made = get_peft_model(load(arguments.base), config)
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        made.save_pretrained(arguments.adapter)
        (arguments.adapter / "README.md").unlink(missing_ok=True)
    model = PeftModel.from_pretrained(load(arguments.base), arguments.adapter).eval()
    # PEFT itself only warns.
    with safe_open(arguments.adapter / "adapter_model.safetensors", "np") as file:
        mismatched = set(file.keys()) ^ set(get_peft_model_state_dict(model))
    assert not mismatched, f"in the file or in the model, not in both: {sorted(mismatched)}"
    sentences = json.loads(arguments.sentences.read_text())
    save_file({"embeddings": embed(model, arguments.base, sentences).contiguous()}, arguments.out)
