"""check.py MODELS NAME … [--candle BINARY]: whether each peer computes what its workloads mean, at small sizes.

MODELS is the folder that models.py filled (tiny and e5 suffice); NAME is a peer of serve.py, or candle with its BINARY. Every workload is
asked of every peer; its values are compared with NumPy's (reference.py) on two inputs. One line per peer and workload; exit 1 on a
difference, where an answer breaks the protocol, or where a peer can do nothing. That it cannot do some workload is no failure.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
import reference  # noqa: E402

# What f16 activations and quantised weights lose.
TOLERANCES = {"f32": 1e-5, "f16": 1e-2, "q8_0": 2e-2, "q4_0": 0.3}
# llama.cpp's attention on the CPU rounds to f16 whatever the cache is. ONNX Runtime's scales are those of whole tensors.
OWN_TOLERANCES = {("llama.cpp", "f32"): 1e-3, ("onnxruntime", "q8_0"): 5e-2}
# Losses of later steps depend on the adapter's start.
LATER_LOSS = 1e-3
TEXTS = ["a river runs through the city", "list", "sort a vector in python and search the large model", "borrow a value"]


def workloads(models: Path) -> list[dict]:
    tiny, e5 = str(models / "tiny"), str(models / "e5")
    texts = [[f"{number} {text}" for text in TEXTS[number:] + TEXTS[:number]] for number in range(4)]
    plain = [
        *({"workload": name, "rows": 7, "width": 200} for name in ("softmax", "layer_norm", "rms_norm", "copy")),
        {"workload": "matmul", "rows": 5, "inputs": 64, "outputs": 96},
        {"workload": "lora_forward", "rows": 5, "features": 64, "rank": 8},
        {"workload": "attention", "tokens": 33, "heads": 6, "kv_heads": 2, "dim": 32},
        {"workload": "embedding", "tokens": 9, "vocabulary": 100, "hidden": 24},
        {"workload": "rope", "tokens": 17, "heads": 3, "dim": 32},
        {"workload": "mlp", "tokens": 4, "hidden": 48, "intermediate": 96},
        {"workload": "prefill", "tokens": 40, "model": tiny},
        {"workload": "generate", "prompt": 12, "tokens": 10, "model": tiny},
        *({"workload": "lora_step", "tokens": 40, "rank": 8, "counted": counted, "model": tiny} for counted in ("all", "half")),
        {"workload": "embed", "texts": texts, "model": e5},
    ]
    half = [w | {"dtype": "f16"} for w in plain if w["workload"] in ("matmul", "prefill", "generate")]
    quantised = [w | {"dtype": t} for w in plain for t in ("q8_0", "q4_0") if w["workload"] in ("prefill", "generate", "embed")]
    return [w | {"dtype": "f32"} for w in plain] + half + quantised


@cache
def expected(workload: str, i: int) -> list[float]:
    return reference.answer(json.loads(workload), i)


class Peer:
    def __init__(self, command: list):
        self.errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)
        self.hello = self.read()

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"the peer ended: {self.errors.read()[-2000:]}")
        return json.loads(line)

    def ask(self, request: dict) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0


def difference(peer: str, w: dict, found: list, i: int, is_later: bool) -> float:
    """In units of the tolerance."""
    wanted = expected(json.dumps(w), i)
    if len(found) != len(wanted):
        return float("inf")
    if w["workload"] == "generate" and w["dtype"] not in ("f32", "f16"):
        return 0.0  # other weights may well choose another token
    tolerance = OWN_TOLERANCES.get((peer, w["dtype"]), TOLERANCES[w["dtype"]])
    if w["workload"] == "lora_step" and is_later:
        tolerance = LATER_LOSS
    # The values of a unit vector are all far below one.
    scale = max(0.0 if w["workload"] == "embed" else 1.0, *map(abs, wanted))
    return max(abs(a - b) for a, b in zip(found, wanted)) / (tolerance * scale)


def verdict(peer: Peer, w: dict) -> tuple[str, str]:
    ready = peer.ask({"prepare": w})
    if "unsupported" in ready:
        return "-", ready["unsupported"]
    assert ready["ready"] is True and ready["cold_seconds"] > 0, ready
    name = peer.hello["peer"]
    differences = [difference(name, w, ready["values"], 0, False)]
    for first, calls in ((0, 1), (1, 2)):  # inputs 0 and 2
        answer = peer.ask({"calls": calls, "input": first})
        if "unsupported" in answer:
            return "FAILS", answer["unsupported"]
        assert answer["seconds"] > 0 and answer["after"] >= 0, answer
        differences.append(difference(name, w, answer["values"], first + calls - 1, True))
    parts = answer.get("parts", {})
    wanted = {"generate": {"first_token", "per_token"}, "lora_step": {"forward", "backward", "optimizer"}}
    released = peer.ask({"release": True})
    assert released["released"] is True, released
    if set(parts) != wanted.get(w["workload"], set()):
        return "FAILS", f"parts {sorted(parts)}"
    worst = max(differences)
    return "ok" if worst <= 1 else "DIFFERS", f"{worst:.3f} of the tolerance"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--candle", type=Path, metavar="BINARY")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.names:
        is_candle = name == "candle"
        peer = Peer([arguments.candle] if is_candle else [sys.executable, Path(__file__).with_name("serve.py"), name])
        print(name, json.dumps(peer.hello), flush=True)
        verdicts = []
        for w in workloads(arguments.models):
            word, text = verdict(peer, w)
            verdicts.append(word)
            label = " ".join(str(w[key]) for key in ("workload", "counted", "dtype") if key in w)
            print(f"{name:22} {label:20} {word:8} {text}", flush=True)
        failed |= "ok" not in verdicts or not {"ok", "-"} >= set(verdicts)
        unknown = peer.ask({"prepare": {"workload": "no such", "dtype": "f32"}})
        assert "unsupported" in unknown, unknown
        peer.end()
    sys.exit(failed)


if __name__ == "__main__":
    main()
