"""kernels_beside.py OURS CANDLE OUT.jsonl [--rounds N]: softmax, layer norm and RMS norm on the CPU in f32: Firebrick, PyTorch, MLX and
candle in turns, beside a copy of the same tensor by PyTorch, which reads and writes as many bytes.

OURS is the binary of the bench `kernels_beside` (`cargo bench --bench kernels_beside --no-run`), CANDLE that of `benches/peers/candle`
(`cargo build --release` there). Needs torch, mlx[cpu] and numpy. Each round times every peer once, in an order that turns; a ratio is the
median over the rounds of the peer's seconds over ours in that round, so that above 1 we are faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from embed_beside import THREADS, facts


def values(count, seed):
    import numpy

    return ((numpy.arange(count, dtype=numpy.int64) * 7919 + seed) % 2003).astype(numpy.float32) / numpy.float32(1001.0) - 1


class Server:
    """One of the Rust sides."""

    def __init__(self, binary):
        environment = os.environ | {"KERNELS_BESIDE": "1", "RAYON_NUM_THREADS": str(THREADS)}
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def __call__(self, op, rows, width, calls):
        request = {"op": op, "rows": rows, "width": width, "calls": calls}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["first"]


def in_python(compute, first):
    def run(op, rows, width, calls):
        call = compute(op, rows, width)
        for _ in range(4):
            call()
        begun = time.perf_counter()
        for _ in range(calls):
            result = call()
        return (time.perf_counter() - begun) / calls, first(result)

    return run


def pytorch(copies=False):
    import torch
    import torch.nn.functional as f

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)

    def compute(op, rows, width):
        x = torch.from_numpy(values(rows * width, 1).reshape(rows, width))
        weight, bias = torch.from_numpy(values(width, 2)), torch.from_numpy(values(width, 3))
        if copies:
            return lambda: x.clone()
        return {
            "softmax": lambda: torch.softmax(x, 1),
            "layer_norm": lambda: f.layer_norm(x, (width,), weight, bias, 1e-5),
            "rms_norm": lambda: f.rms_norm(x, (width,), weight, 1e-6),
        }[op]

    return in_python(compute, lambda result: None if copies else result[0, :4].tolist())


def mlx():
    import mlx.core as mx

    mx.set_default_device(mx.cpu)

    def compute(op, rows, width):
        x = mx.array(values(rows * width, 1).reshape(rows, width))
        weight, bias = mx.array(values(width, 2)), mx.array(values(width, 3))
        call = {
            "softmax": lambda: mx.softmax(x, axis=1),
            "layer_norm": lambda: mx.fast.layer_norm(x, weight, bias, 1e-5),
            "rms_norm": lambda: mx.fast.rms_norm(x, weight, 1e-6),
        }[op]

        def evaluated():
            result = call()
            mx.eval(result)
            return result

        return evaluated

    return in_python(compute, lambda result: result[0, :4].tolist())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ours")
    parser.add_argument("candle")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    sides = {"firebrick": Server(arguments.ours), "torch": pytorch(), "mlx": mlx(), "candle": Server(arguments.candle), "copy": pytorch(True)}
    names = list(sides)
    with arguments.out.open("a") as out:
        for op in ("softmax", "layer_norm", "rms_norm"):
            for rows, width in ((64, 1024), (1024, 1024), (4096, 4096), (1, 896), (512, 896)):
                calls = max(4, min(5000, 150_000_000 // (rows * width)))
                expected = sides["torch"](op, rows, width, 3)[1]
                for name in names:  # warm up, and see that all compute the same
                    first = sides[name](op, rows, width, max(3, calls // 10))[1]
                    if first is not None:
                        difference = max(abs(a - b) for a, b in zip(first, expected))
                        assert difference < 1e-5, f"{op}: {name} differs by {difference}"
                times = {name: [] for name in names}
                for turn in range(arguments.rounds):
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        # What spins on after its work must not slow the next in turn.
                        time.sleep(0.01)
                        times[name].append(sides[name](op, rows, width, calls)[0])
                ratio = {
                    name: round(statistics.median(a / b for a, b in zip(times[name], times["firebrick"])), 3)
                    for name in names[1:]
                }
                told = facts(arguments.commit, ("torch", "mlx"))
                told["versions"]["candle-core"] = "0.10.2"
                moved = 2 * 4 * rows * width
                record = {
                    "workload": f"{op}, [{rows}, {width}], f32", "calls": calls,
                    "rounds": arguments.rounds, "peer_seconds_over_ours": ratio,
                    "gigabytes_per_second": {name: round(moved / statistics.median(times[name]) / 1e9, 2) for name in names},
                } | told
                out.write(json.dumps(record) + "\n")
                out.flush()
                print(record["workload"], ratio, record["gigabytes_per_second"], flush=True)


if __name__ == "__main__":
    main()
