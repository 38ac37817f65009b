"""From any supported checkpoint to a CLIP."""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipseg_jax.models.clip import CLIP, CLIPConfig, Tokenizer
from weights_convert.clip import layouts
from weights_convert.clip.build import abstract, build, config_of, expected_shapes
from weights_convert.clip.cache import (
    config_from_dict,
    config_to_dict,
    through_cache,
    tokenizer_from_dict,
    tokenizer_to_dict,
)
from weights_convert.clip.huggingface import weights_file, with_side_files
from weights_convert.clip.keys import OPENAI, RELEASED
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import FORMAT, Converted, is_converted, load_converted
from weights_convert.formats.reader import Checkpoint, read

_log = logging.getLogger(__name__)


class LoadedCLIP(NamedTuple):
    """A CLIP ready to use."""

    model: CLIP
    tokenizer: Tokenizer | None  # None: an image tower alone
    meta: dict[str, Any]  # source, sha256, kind, layout, model, parameters, bytes, config


def convert(path: str | Path, *, vision_only: bool = False) -> Converted:
    """Any supported checkpoint as arrays by our paths; views of the mapped file where possible.

    Raises:
      CheckpointError: as `read`; or lists every missing, unexpected and wrongly shaped key.
      FileNotFoundError: no file.
    """
    path = Path(path)
    weights_path = weights_file(path)
    if is_converted(weights_path):
        converted = load_converted(weights_path)
        return _image_tower(converted) if vision_only else converted
    checkpoint = read(weights_path)
    named, config, arrays = fit(checkpoint, path, weights_path, vision_only=vision_only)
    digest = sha256(weights_path)
    record = {
        "format": FORMAT,
        "source": path.name,
        "sha256": digest,
        "kind": checkpoint.kind,
        "layout": named.layout,
        "model": released(digest, path),
        **_counts(arrays),
        "absent": list(named.absent),
        "config": config_to_dict(config),
        "tokenizer": tokenizer_to_dict(path, config),
        "carried": {k: [str(v.dtype), v.tolist()] for k, v in named.carried.items()},
    }
    return Converted(arrays, record)


def fit(
    checkpoint: Checkpoint, path: Path, weights_path: Path, *, vision_only: bool = False
) -> tuple[layouts.Named, CLIPConfig, dict[str, np.ndarray]]:
    """A checkpoint's layout; its config, by shapes and JSON files beside it; arrays by our paths.

    Raises:
      CheckpointError: not a CLIP; or lists every missing, unexpected and wrongly shaped key.
    """
    try:
        named = layouts.identify(checkpoint.content)
        named = layouts.vision_only(named) if vision_only else named
        config = with_side_files(config_of(layouts.sketch(named)), named.layout, weights_path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    weights = layouts.weights(named, expected_shapes(config), str(path))
    return named, config, OPENAI.to_right(weights, abstract(config)[1], str(path))


def _counts(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    return {
        "parameters": sum(math.prod(array.shape) for array in arrays.values()),
        "bytes": sum(array.nbytes for array in arrays.values()),
    }


def _image_tower(converted: Converted) -> Converted:
    arrays = {path: v for path, v in converted.arrays.items() if path.startswith("visual.")}
    config = {**converted.record["config"], "text": None}
    changed = {**_counts(arrays), "config": config, "tokenizer": None}
    return Converted(arrays, converted.record | changed)


def load_clip(
    path: str | Path,
    *,
    cache_dir: str | Path | None = None,
    vision_only: bool = False,
    activation: str | None = None,
    norm_eps: float | None = None,
    dtype: str | None = None,
) -> LoadedCLIP:
    """A CLIP from a raw checkpoint, a Hugging Face directory or a converted file.

    Large raw files are converted once and kept in `cache_dir` (default: $CLIPSEG_JAX_CACHE, else
    ~/.cache/clipseg_jax).

    Args:
      vision_only: whether the text tower is left out.
      activation, norm_eps, dtype: replace those of the file, in each tower that has them.

    Raises:
      CheckpointError, FileNotFoundError: the file cannot be used.
    """
    path = Path(path)
    weights_path = weights_file(path)

    def fresh() -> Converted:
        return convert(path, vision_only=vision_only)

    if is_converted(weights_path):
        converted = fresh()
    else:
        converted = through_cache(path, weights_path, cache_dir, vision_only, fresh)
    record = converted.record
    replaced = {"activation": activation, "norm_eps": norm_eps, "dtype": dtype}
    replaced = {name: value for name, value in replaced.items() if value is not None}
    config = config_from_dict(record["config"]).replace(**replaced)
    model = build(converted.arrays, config)
    meta = {k: v for k, v in record.items() if k not in ("carried", "tokenizer")}
    tokenizer = tokenizer_from_dict(record["tokenizer"]) if config.text else None
    if tokenizer and config.text and len(tokenizer.ids) > config.text.vocabulary:
        _log.warning(
            "%s has %d token embeddings, fewer than the %d tokens of the tokenizer; give a "
            "directory with its vocab.json and merges.txt",
            path, config.text.vocabulary, len(tokenizer.ids),
        )  # fmt: skip
    return LoadedCLIP(model, tokenizer, meta)


def sha256(path: Path) -> str:
    """A file's digest, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def released(digest: str, path: Path) -> str | None:
    """The released model with this digest; warns if only the file's name is that of one."""
    if digest[:16] in RELEASED:
        return RELEASED[digest[:16]][0]
    if path.name in {file for _, file in RELEASED.values()}:
        _log.warning(
            "%s has the name of a released checkpoint but another sha256 (%s)", path, digest
        )
    return None
