"""peft_random_adapter.py BASE OUT: an adapter written by PEFT with random A and B, for us to load.

B starts at zero in PEFT, which would hide every mistake: here it is normal(0, 0.1).
"""

import argparse
import json
from pathlib import Path

from logits import load

import torch
from peft import LoraConfig, get_peft_model

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--targets", default="q_proj,v_proj", help="names with commas, or all-linear")
    parser.add_argument("--target-regex", help="instead of --targets")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--rank-pattern", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--alpha-pattern", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--layers", help="layers_to_transform, with commas")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    targets = arguments.targets if arguments.targets == "all-linear" else arguments.targets.split(",")
    torch.manual_seed(arguments.seed)
    model = get_peft_model(
        load(arguments.base),
        LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=arguments.target_regex or targets,
            r=arguments.rank,
            lora_alpha=arguments.alpha,
            use_rslora=arguments.rslora,
            rank_pattern=arguments.rank_pattern,
            alpha_pattern=arguments.alpha_pattern,
            layers_to_transform=[int(layer) for layer in arguments.layers.split(",")] if arguments.layers else None,
        ),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(arguments.out)
