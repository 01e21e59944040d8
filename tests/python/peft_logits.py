"""peft_logits.py BASE ADAPTER TOKENS OUT.safetensors [--merge]: logits with an adapter, as PEFT computes them in f32.

Arguments and output are those of logits.py. `--merge` folds the adapter into the base's weights first.
A tensor of the adapter's file that PEFT did not take, or one it lacks, is an error.
"""

import argparse
from pathlib import Path

from logits import forward, load, read_tokens, write_logits

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("tokens")
    parser.add_argument("out", type=Path)
    parser.add_argument("--merge", action="store_true")
    arguments = parser.parse_args()
    model = PeftModel.from_pretrained(load(arguments.base), arguments.adapter).eval()
    # PEFT itself only warns.
    with safe_open(arguments.adapter / "adapter_model.safetensors", "np") as file:
        mismatched = set(file.keys()) ^ set(get_peft_model_state_dict(model))
    assert not mismatched, f"in the file or in the model, not in both: {sorted(mismatched)}"
    if arguments.merge:
        model = model.merge_and_unload()
    write_logits(arguments.out, read_tokens(arguments.tokens), forward(model))
