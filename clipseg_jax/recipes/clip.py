"""What every recipe does with CLIP: load it, make class embeddings with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import weights_convert
from clipseg_jax.core.files import write_atomic
from clipseg_jax.prompts import class_embeddings, templates, text_encoder
from clipseg_jax.recipes.data import find_dataset

EMBEDDINGS = "text_embeddings.npy"


def load_clip(config: ConfigDict) -> weights_convert.LoadedCLIP:
    """The CLIP that the config names.

    Raises:
      ValueError: no weights named.
    """
    if not config.clip.weights:
        raise ValueError(
            "no CLIP weights; pass --config.clip.weights=FILE (an OpenAI .pt, a Hugging Face "
            "directory or an OpenCLIP file)"
        )
    return weights_convert.load_clip(config.clip.weights, dtype=config.clip.dtype)


def row_words(config: ConfigDict) -> list[str]:
    """The words that the rows of the classifier stand for: prompts, then background words."""
    return [*find_dataset(config.dataset).prompts, *config.text.background_words]


def row_labels(config: ConfigDict) -> tuple[int, ...]:
    """The label that each row means.

    Prompt i means label i, or i + 1 beside a background class; background words mean 0.
    """
    dataset = find_dataset(config.dataset)
    first = dataset.num_classes - len(dataset.prompts)
    return (*range(first, dataset.num_classes), *(0 for _ in config.text.background_words))


def text(config: ConfigDict, workdir: Path) -> dict:
    """Stage: class embeddings (rows, e) into text_embeddings.npy."""
    return embed_words(config, workdir, row_words(config))


def embed_words(
    config: ConfigDict,
    workdir: Path,
    words: Sequence[str],
    name: str = EMBEDDINGS,
    *,
    templates_name: str | None = None,
) -> dict:
    """Embeddings (words, e) into the file `name`; in the templates of `config.text` or others."""
    clip, tokenizer, _ = load_clip(config)
    if clip.cfg.text is None or tokenizer is None:
        raise ValueError(f"{config.clip.weights} has no text tower to make class embeddings with")
    with tqdm(unit="prompt", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rows = class_embeddings(
            words,
            text_encoder(clip.text),
            tokenizer,
            prompt_templates=templates(templates_name or config.text.templates),
            context_length=clip.cfg.text.context_length,
            progress=progress,
        )
    if jax.process_index() == 0:
        write_atomic(workdir / name, lambda file: np.save(file, rows))
    return {"rows": len(rows), "prompts": list(words)}


def read_embeddings(
    config: ConfigDict,
    workdir: Path,
    words: Sequence[str] | None = None,
    name: str = EMBEDDINGS,
) -> np.ndarray:
    """What the stage `text`, or `embed_words`, left.

    Raises:
      ValueError: nothing, or rows of another class list.
    """
    path = workdir / name
    if not path.exists():
        raise ValueError(f"{path} is missing; run the stage `text` first")
    rows, words = np.load(path), row_words(config) if words is None else words
    if len(rows) != len(words):
        raise ValueError(
            f"{path} holds {len(rows)} rows for {len(words)} prompts and background words; "
            "delete it and run the stage `text` again"
        )
    return rows
