"""llama.cpp through llama-cpp-python: `prefill`, `generate` and `embed` of the GGUF beside a model's folder (models.py). Started by serve.py.

The dtype says which file: f32, f16, q8_0 or q4_0. The cache of keys and values is f32 with the first, llama.cpp's default of f16 with the
others; everything else is as the library's own defaults have it. For the decoder the C functions are called directly, since the Python
class over them copies logits that nobody asked for; `embed` is that class's, with the tokenizer and the pooling of llama.cpp.
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path

import llama_cpp as c
import numpy
from protocol import THREADS, Unsupported, Work, look_up, token_ids

DEVICE = "cpu"
# On a processor with AMX the library lays packed weights out for it, and 0.3.36 then ends with a segmentation fault at the first product of
# many rows (Linux 6.18). There it multiplies them as they lie, with AVX-512 and VNNI.
HAS_AMX = Path("/proc/cpuinfo").exists() and " amx_int8 " in Path("/proc/cpuinfo").read_text()
DTYPES = ("f32", "f16", "q8_0", "q4_0")


@c.llama_log_callback
def only_errors(level, text, user_data):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(text.decode(), end="", file=sys.stderr)


c.llama_log_set(only_errors, None)
c.llama_backend_init()


def versions() -> dict:
    return {"llama-cpp-python": version("llama-cpp-python")}


def gguf_of(w: dict) -> Path:
    name = w.get("dtype", "f32")
    if name not in DTYPES:
        raise Unsupported(f"dtype {name}")
    folder = Path(w["model"])
    path = folder.with_name(f"{folder.name}-{name}.gguf")
    if not path.exists():
        raise Unsupported(f"no file {path.name}")
    return path


class Session:
    """A model and a context of `size` tokens; freed when it is dropped."""

    def __init__(self, w: dict, size: int):
        self.model = self.context = None
        path = gguf_of(w)
        options = c.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_mmap = False  # in memory before the clock starts
        options.use_extra_bufts = not HAS_AMX
        self.model = c.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise Unsupported(f"llama.cpp does not load {path.name}")
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        options = c.llama_context_default_params()
        options.n_ctx = size
        options.n_batch = max(size, options.n_ubatch)
        options.n_threads = options.n_threads_batch = THREADS
        if w.get("dtype", "f32") == "f32":
            options.type_k = options.type_v = c.GGML_TYPE_F32
        self.context = c.llama_init_from_model(self.model, options)
        if not self.context:
            raise Unsupported("llama.cpp makes no context")

    def __del__(self):
        if self.context:
            c.llama_free(self.context)
        if self.model:
            c.llama_model_free(self.model)

    def forget(self) -> None:
        c.llama_memory_clear(c.llama_get_memory(self.context), False)

    def logits(self, tokens) -> numpy.ndarray:
        """Of the last of `tokens` (a C array); theirs until the next call."""
        status = c.llama_decode(self.context, c.llama_batch_get_one(tokens, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama_decode answers {status}")
        return numpy.ctypeslib.as_array(c.llama_get_logits_ith(self.context, -1), (self.vocabulary,))


def id_rows(count: int) -> list:
    return [(c.llama_token * count)(*map(int, row)) for row in token_ids(count)]


def prefill(w):
    session, ids = Session(w, w["tokens"]), id_rows(w["tokens"])

    def call(i):
        session.forget()
        return session.logits(ids[i])

    return Work(call, lambda logits: logits[:8].tolist())


def generate(w):
    tokens, parts = w["tokens"], {}
    session, ids = Session(w, w["prompt"] + tokens), id_rows(w["prompt"])

    def call(i):
        begun = time.perf_counter()
        session.forget()
        made = [int(session.logits(ids[i]).argmax())]
        first = time.perf_counter()
        while len(made) < tokens:
            made.append(int(session.logits((c.llama_token * 1)(made[-1])).argmax()))
        parts["first_token"] = first - begun
        if tokens > 1:
            parts["per_token"] = (time.perf_counter() - first) / (tokens - 1)
        return made

    return Work(call, lambda made: made[:8], parts=parts)


def embed(w):
    # 512 tokens at once, the library's default, hold several texts or the longest one. Without flash attention it takes twice as long.
    model = c.Llama(
        str(gguf_of(w)), embedding=True, n_ctx=512, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, use_mmap=False,
        flash_attn=True, verbose=False,
    )
    texts = w["texts"]
    return Work(lambda i: model.embed(texts[i], normalize=True), lambda vectors: [float(value) for value in vectors[0][:8]])


def prepare(w: dict) -> Work:
    return look_up({"prefill": prefill, "generate": generate, "embed": embed}, w)
