"""Prompt templates, and class embeddings from a text tower."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from importlib import resources
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.core.checks import check_number
from clipseg_jax.models.clip import (
    SigLIPText,
    SigLIPTokenizer,
    TextTransformer,
    Tokenizer,
    l2_normalize,
)

MOST_CLASSES = 254  # with the background and 255, what an index PNG holds

TextEncoder = Callable[[Array], Array]  # ids (n, t) int32 -> features (n, e), not normalised


@functools.cache
def templates(name: str) -> tuple[str, ...]:
    """The prompt templates of a set, each with one `{}` for the class name.

    Sets: "imagenet_80", "maskclip_85" (TagCLIP's as well), "clip_es", "single" and more.

    Raises:
      ValueError: no such set; the message lists all.
    """
    text = resources.files("clipseg_jax").joinpath("prompt_templates.json").read_text("utf-8")
    sets = json.loads(text)
    if name not in sets:
        raise ValueError(f"no template set {name!r}; choose one of {sorted(sets)}")
    return tuple(sets[name])


def text_encoder(text: TextTransformer | SigLIPText) -> TextEncoder:
    """The jitted forward pass of a text tower: ids (n, t) int32 -> features (n, e)."""
    from flax import nnx

    graph, state = nnx.split(text)

    @jax.jit
    def encode(state: nnx.State, ids: Array) -> Array:
        return nnx.merge(graph, state)(ids)

    return functools.partial(encode, state)


def class_embeddings(
    class_names: Sequence[str],
    encoder: TextEncoder,
    tokenizer: Tokenizer | SigLIPTokenizer,
    *,
    prompt_templates: Sequence[str] = ("a photo of a {}.",),
    context_length: int = 77,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """L2-normalised text embeddings (classes, e) float32: means over templates of unit features.

    All batches of prompts have one shape, truncated to the longest prompt: the text tower is
    causal, so removing padding does not change its output (SigLIP's is not, and keeps it). Spec
    clip, sections 4 and 9.

    Args:
      class_names: inserted into each template.
      encoder: ids (n, t) -> features (n, e), from `text_encoder`.
      tokenizer: the checkpoint's tokenizer.
      prompt_templates: texts with one `{}`.
      context_length: longest prompt in tokens that the text tower takes.
      batch_size: prompts encoded at a time.
      progress: called with (prompts encoded, total) after each batch.

    Raises:
      ValueError: an empty class list, an empty or repeated name, a prompt too long to encode, or
        embeddings that are not finite.
    """
    class_names = check_class_names(class_names)
    filled = [template.format(name) for name in class_names for template in prompt_templates]
    ids = tokenizer(filled, context_length)
    if isinstance(tokenizer, Tokenizer):
        ids = ids[:, : int((np.argmax(ids, axis=1)).max()) + 1]
    batch_size = min(batch_size, len(filled))
    embeddings = []
    for start in range(0, len(filled), batch_size):
        batch = ids[start : start + batch_size]
        padded = np.pad(batch, ((0, batch_size - len(batch)), (0, 0)), mode="edge")
        embeddings.append(np.asarray(l2_normalize(encoder(jnp.asarray(padded))))[: len(batch)])
        if progress:
            progress(min(start + batch_size, len(filled)), len(filled))
    features = np.concatenate(embeddings).reshape(len(class_names), len(prompt_templates), -1)
    mean = features.mean(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)
    check_embeddings(mean, class_names, "the text tower")
    return mean


def check_embeddings(embeddings: np.ndarray, class_names: Sequence[str], source: str) -> None:
    """Checks that embeddings (classes, e) are finite: NaN would make every pixel the first class.

    Raises:
      ValueError: one is not; the message names `source` and the class.
    """
    finite = np.isfinite(embeddings).all(axis=-1)
    if not finite.all():
        first = class_names[int(np.argmin(finite))]
        raise ValueError(
            f"{source} gives embeddings that are NaN or infinite for {int((~finite).sum())} of "
            f"{len(finite)} classes, such as {first!r}; check its weights, its tokenizer and dtype"
        )


def check_class_names(class_names: Iterable[str], argument: str = "class_names") -> list[str]:
    """The names of an ordered collection (list, tuple, array, ...), checked.

    Args:
      class_names: the names.
      argument: what the error message calls them.

    Raises:
      ValueError: an empty list, something else than a list of strings, an empty name, or a name
        that is listed twice (case is ignored).
    """
    if isinstance(class_names, str):
        raise ValueError(f"class names must be a list, not a string: pass [{class_names!r}]")
    unordered = (bytes, Mapping, Set)
    if not isinstance(class_names, Iterable) or isinstance(class_names, unordered):
        kind = type(class_names).__name__
        raise ValueError(f"{argument} is of type {kind}; give a list of names, in order")
    names = list(class_names)
    if not names:
        what = "the class list" if argument == "class_names" else argument
        raise ValueError(f"{what} is empty; give at least one name")
    first_index: dict[str, int] = {}
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(
                f"{argument}: number {i + 1} is {name!r}, of type {type(name).__name__}; give one "
                "name for each class, a string (synonyms are classes of their own)"
            )
        key = " ".join(name.lower().split())
        if not key:
            raise ValueError(f"class {i + 1} of {len(names)} has an empty name")
        if key in first_index:
            raise ValueError(
                f"class {name!r} is listed twice (numbers {first_index[key] + 1} and {i + 1}); "
                "list it once"
            )
        first_index[key] = i
    return [str(name) for name in names]


def read_words(
    class_names: Sequence[str], background: float | Sequence[str] | None
) -> tuple[list[str], list[str], float]:
    """Class names, background words, and threshold (0: none) of `segment`'s arguments, checked.

    Raises:
      ValueError: what is no list of names, a name in both lists, more classes than an index PNG
        holds, or a background that is neither words nor a probability that can decide.
    """
    names = check_class_names(class_names)
    if len(names) > MOST_CLASSES:
        raise ValueError(
            f"{len(names)} classes; pass at most {MOST_CLASSES}, which fit an index PNG"
        )
    if "background" in (" ".join(name.lower().split()) for name in names):
        raise ValueError(
            "the class 'background' is label 0 in any case; leave it out, and give words for what "
            "it consists of as background words"
        )
    if background is None:
        return names, [], 0.0
    taken = "give words, or a probability from 0 to 1"
    if isinstance(background, str):
        if _is_number(background):
            raise ValueError(f"background is the text {background!r}; {taken} as a number")
        raise ValueError(
            f"background is the text {background!r}; give a list of words: "
            f"background=[{background!r}]"
        )
    if is_threshold(background):
        number = getattr(background, "item", lambda: background)()
        try:
            threshold = check_number("background", number, 0, 1)
        except ValueError as error:
            raise ValueError(f"background is {background!r}; {taken}") from error
        if len(names) == 1 and threshold > 0:
            raise ValueError(
                f"background is {background!r} with one class, whose probability is 1 everywhere; "
                "give words for what else is in the images: background=['wall', 'floor'], or "
                "--background-words 'wall, floor'"
            )
        return names, [], threshold
    words = check_class_names(cast("Iterable[str]", background), "background")
    check_class_names([*names, *words])
    return names, words, 0.0


def is_threshold(background: Any) -> bool:
    """Whether a background is a number, and not words."""
    # NumPy's and JAX's numbers may be arrays without axes.
    return not isinstance(background, Iterable) or getattr(background, "ndim", 1) == 0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
