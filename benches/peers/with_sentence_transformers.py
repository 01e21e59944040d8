"""sentence-transformers: `embed`, tokenizing, pooling and normalising included. Started by serve.py."""

from importlib.metadata import version

from protocol import Work, look_up
from sentence_transformers import SentenceTransformer
from with_pytorch import DEVICE, dtype, finish


def versions() -> dict:
    return {name: version(name) for name in ("sentence-transformers", "torch", "transformers")}


def embed(w):
    model, texts = SentenceTransformer(w["model"], device=DEVICE, model_kwargs={"dtype": dtype(w)}), w["texts"]
    # All texts in one batch, up to a size where the padding costs more than it saves.
    return Work(
        lambda i: model.encode(texts[i], batch_size=128, show_progress_bar=False),
        lambda vectors: [float(value) for value in vectors[0, :8]],
        finish,
    )


def prepare(w: dict) -> Work:
    return look_up({"embed": embed}, w)
