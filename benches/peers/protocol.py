"""What all peers share: the protocol (JSON lines in, JSON lines out), the inputs, and the clock.

A request is `{"prepare": WORKLOAD}`, `{"calls": n, "input": i}` or `{"release": true}`; each gets one line in answer, and nothing else
reaches stdout. The answer to `prepare` has the values of the first call, on input 0: of a training step only that loss is the same
whatever the adapter began with. A library's module has `versions()`, `DEVICE` and `prepare(workload) -> Work`; serve.py joins it to `serve` below.
A workload is made four inputs in advance, which the calls use in turn, so that no call computes what the one before it has.
"""

import gc
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy

THREADS = int(os.environ.get("BENCH_THREADS", "2"))
INPUTS = 4
VOCABULARY = 4000  # ids of model workloads stay below this: every model folder's tokenizer has them


class Unsupported(Exception):
    """The library, or our side of it, does not have this workload."""


@dataclass
class Work:
    """A prepared workload: `call` computes on one of the four inputs, `read` gives the values of what it returned."""

    call: Callable[[int], Any]
    read: Callable[[Any], list]
    finish: Callable[[], None] = lambda: None  # returns when all that was called has been computed
    parts: dict[str, float] = field(default_factory=dict)  # seconds of parts of the last call


def values(shape: tuple[int, ...], seed: int) -> numpy.ndarray:
    at = numpy.arange(math.prod(shape), dtype=numpy.int64)
    return (((at * 7919 + seed) % 2003).astype(numpy.float32) / numpy.float32(1001) - 1).reshape(shape)


def inputs(shape: tuple[int, ...]) -> list[numpy.ndarray]:
    return [values(shape, 1 + 17 * number) for number in range(INPUTS)]


def token_ids(count: int, vocabulary: int = VOCABULARY) -> list[numpy.ndarray]:
    """Those of each input."""
    at = numpy.arange(count, dtype=numpy.int64)
    return [(at * 7919 + 31 * number) % vocabulary for number in range(INPUTS)]


def counted_labels(ids: numpy.ndarray, counted: str) -> numpy.ndarray:
    """Labels of `lora_step`: -100 where the loss does not count a position."""
    odd = numpy.arange(len(ids)) % 2 == 1
    return numpy.where(odd & (counted == "half"), -100, ids)


def look_up(table: dict[str, Callable], workload: dict) -> Work:
    """The entry of a library's table for a workload, made."""
    name = workload["workload"]
    if name not in table:
        raise Unsupported(f"{name} has no counterpart here")
    return table[name](workload)


def run(work: Work, calls: int, first: int) -> tuple[float, Any]:
    """Seconds of `calls` calls, and the last result."""
    result = None
    begun = time.perf_counter()
    for number in range(first, first + calls):
        result = None  # dropped before the next is made
        result = work.call(number % INPUTS)
    work.finish()
    return time.perf_counter() - begun, result


def forget_peak() -> None:
    """Where the kernel can, makes the peak of this process's memory what it has now."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak_rss_bytes() -> int:
    try:
        with open("/proc/self/status") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) * 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def one_line(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, Unsupported):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


class Server:
    def __init__(self, prepare: Callable[[dict], Work]):
        self.prepare = prepare
        self.work: Work | None = None

    def release(self) -> None:
        self.work = None
        gc.collect()

    def answer(self, request: dict) -> dict:
        if "prepare" in request:
            self.release()
            forget_peak()
            self.work = self.prepare(request["prepare"])
            seconds, result = run(self.work, 1, 0)
            return {"ready": True, "cold_seconds": seconds, "values": self.work.read(result)}
        if "release" in request:
            peak = peak_rss_bytes()
            self.release()
            return {"released": True, "peak_rss_bytes": peak}
        if self.work is None:
            raise Unsupported("nothing is prepared")
        seconds, result = run(self.work, request["calls"], request["input"])
        begun = time.perf_counter()
        read = self.work.read(result)
        answer = {"seconds": seconds, "after": time.perf_counter() - begun, "values": read}
        return answer | ({"parts": dict(self.work.parts)} if self.work.parts else {})


def serve(hello: dict, prepare: Callable[[dict], Work], out) -> None:
    def say(answer: dict) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    server = Server(prepare)
    say(hello)
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:  # whatever a library raises is its answer; the next workload may do better
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            answer = {"unsupported": one_line(error)}
        if "unsupported" in answer:  # only now: the error's frames held what was prepared
            server.release()
        say(answer)
