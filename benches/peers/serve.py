"""serve.py NAME: one peer of the benchmark matrix as a process that answers the protocol of protocol.py.

NAME is pytorch, peft, sentence-transformers, onnxruntime, mlx or llama.cpp. Environment: BENCH_THREADS (default 2); BENCH_DEVICE (default
cpu; torch's libraries take what torch calls a device, such as cuda; mlx takes gpu). Run with the interpreter that setup.sh prints. A peer
whose library is not installed starts all the same, and answers every workload with why it cannot do it.
"""

import importlib
import os
import sys

PEERS = {
    "pytorch": "with_pytorch",
    "peft": "with_peft",
    "sentence-transformers": "with_sentence_transformers",
    "onnxruntime": "with_onnxruntime",
    "mlx": "with_mlx",
    "llama.cpp": "with_llama_cpp",
}


def environment() -> None:
    """Settings that libraries read when they are imported."""
    threads = os.environ.setdefault("BENCH_THREADS", "2")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[name] = threads
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["HF_HUB_OFFLINE"] = "1"  # models are folders


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in PEERS:
        sys.exit(f"usage: serve.py {{{','.join(PEERS)}}}")
    name = sys.argv[1]
    environment()
    # The answers keep stdout to themselves: what a library prints there goes to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import protocol

    try:
        library = importlib.import_module(PEERS[name])
        versions, device, prepare = library.versions(), library.DEVICE, library.prepare
    except Exception as error:
        why = protocol.one_line(error)
        print(why, file=sys.stderr)
        versions, device = {}, "cpu"

        def prepare(workload):
            raise protocol.Unsupported(why)

    protocol.serve({"peer": name, "versions": versions, "device": device}, prepare, out)


if __name__ == "__main__":
    main()
