"""The cache of converted CLIPs, and their records: config and tokenizer as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipseg_jax.models.clip import CLIPConfig, ResNetConfig, TextConfig, Tokenizer, ViTConfig
from clipseg_jax.models.clip.tokenizer import vocabulary
from weights_convert.clip.huggingface import SIDE_FILES
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import FORMAT, Converted, load_converted, save_converted

_CACHED_FROM_BYTES = 32 * 2**20  # smaller files convert faster than they are found in a cache
_log = logging.getLogger(__name__)


def through_cache(
    path: Path,
    weights_path: Path,
    cache_dir: str | Path | None,
    options: Any,
    convert: Callable[[], Converted],
) -> Converted:
    """What `convert` gives for `path`, from a cache if it was there before.

    `options` (JSON) tells apart what `convert` makes of the same file. A cache that cannot be
    written or is damaged costs time, and is warned of; processes may share it.
    """
    folder = _cache_folder(cache_dir)
    if folder is None or weights_path.stat().st_size < _CACHED_FROM_BYTES:
        return convert()
    # The files' places, sizes and times instead of a digest: reading it all is what is to be saved.
    read = [weights_path, *(weights_path.parent / name for name in SIDE_FILES)]
    stats = [(file.stat().st_size, file.stat().st_mtime_ns) for file in read if file.is_file()]
    identity = [str(weights_path.resolve()), path.is_dir(), stats, options, FORMAT]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    cached = folder / f"{name}.safetensors"
    try:
        return load_converted(cached)
    except CheckpointError as error:
        _log.warning("converting %s again: %s", path, error)
    except OSError:
        pass  # not cached yet; if the folder is at fault, writing says so
    converted = convert()
    try:
        save_converted(cached, converted)
    except OSError as error:
        _log.warning("going on without a cache: %s", error.strerror or error)
    return converted


def _cache_folder(cache_dir: str | Path | None) -> Path | None:
    if cache_dir is not None:
        return Path(cache_dir)
    if told := os.environ.get("CLIPSEG_JAX_CACHE"):
        return Path(told)
    try:
        return Path.home() / ".cache" / "clipseg_jax"
    except RuntimeError:  # a user without a home, as in some containers
        return None


def config_to_dict(config: CLIPConfig) -> dict[str, Any]:
    """A config as JSON, for a record."""
    kind = "vit" if isinstance(config.vision, ViTConfig) else "resnet"
    text = None if config.text is None else dataclasses.asdict(config.text)
    return {"kind": kind, "vision": dataclasses.asdict(config.vision), "text": text}


def config_from_dict(told: Mapping[str, Any]) -> CLIPConfig:
    """A config from a record."""
    if told["kind"] == "vit":
        vision: ViTConfig | ResNetConfig = ViTConfig(**told["vision"])
    else:
        vision = ResNetConfig(**{**told["vision"], "blocks": tuple(told["vision"]["blocks"])})
    return CLIPConfig(vision, TextConfig(**told["text"]) if told["text"] else None)


def tokenizer_to_dict(path: Path, config: CLIPConfig) -> dict[str, Any] | None:
    """None for OpenAI's vocabulary; else the merges and ids that a directory brings."""
    if config.text is None or not path.is_dir() or not (path / "merges.txt").is_file():
        return None
    tokenizer = Tokenizer.from_directory(path)
    if tokenizer.ids == Tokenizer.openai().ids:
        return None
    merges = [(left, right) for left, right in tokenizer.merges]
    return {"merges": merges, "ids": None if tokenizer.ids == vocabulary(merges) else tokenizer.ids}


def tokenizer_from_dict(told: Mapping[str, Any] | None) -> Tokenizer:
    """A tokenizer from a record."""
    if told is None:
        return Tokenizer.openai()
    return Tokenizer([(left, right) for left, right in told["merges"]], told["ids"])
