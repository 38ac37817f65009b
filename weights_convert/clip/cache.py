"""The cache of converted CLIPs, and the JSON of their config and tokenizer in records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipseg_jax.core.cache_folder import cache_folder
from clipseg_jax.models.clip import (
    CLIPConfig,
    ResNetConfig,
    SigLIPTextConfig,
    SigLIPTokenizer,
    SigLIPVisionConfig,
    TextConfig,
    Tokenizer,
    ViTConfig,
)
from clipseg_jax.models.clip.tokenizer import vocabulary
from weights_convert.clip.huggingface import SIDE_FILES
from weights_convert.clip.shards import weight_files
from weights_convert.clip.siglip_tokenizer_files import tokenizer_of
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import FORMAT, Converted, load_converted, save_converted

_CACHED_FROM_BYTES = 32 * 2**20  # smaller files are converted faster than looked up
_CHECKED = 3  # conversions of earlier versions were not checked for all that this one checks
_log = logging.getLogger(__name__)


def through_cache(
    path: Path,
    weights_path: Path,
    cache_dir: str | Path | None,
    options: Any,
    convert: Callable[[], Converted],
) -> Converted:
    """The result of `convert`, from the cache if `path` was converted before.

    `options` (JSON) distinguishes conversions of one file. If the cache is damaged or cannot be
    written, the file is converted, with a warning. Processes may share a cache.
    """
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    files = weight_files(weights_path)
    if folder is None or sum(each.stat().st_size for each in files) < _CACHED_FROM_BYTES:
        return convert()
    # Paths, sizes and times instead of a digest, for which all files would have to be read.
    read = [weights_path, *files, *(weights_path.parent / name for name in SIDE_FILES)]
    stats = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in read if file.is_file()
    ]
    identity = [str(weights_path.resolve()), path.is_dir(), stats, options, FORMAT, _CHECKED]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    cached = folder / f"{name}.safetensors"
    try:
        return load_converted(cached)
    except CheckpointError as error:
        _log.warning("converting %s again: %s", path, error)
    except OSError:
        pass  # not cached yet; if the folder cannot be read, writing fails too
    converted = convert()
    try:
        save_converted(cached, converted)
    except OSError as error:
        _log.warning("continuing without a cache: %s", error.strerror or error)
    return converted


_KINDS = {"vit": ViTConfig, "resnet": ResNetConfig, "siglip": SigLIPVisionConfig}


def config_to_dict(config: CLIPConfig) -> dict[str, Any]:
    """A config as JSON."""
    (kind,) = (name for name, tower in _KINDS.items() if type(config.vision) is tower)
    text = None if config.text is None else dataclasses.asdict(config.text)
    return {"kind": kind, "vision": dataclasses.asdict(config.vision), "text": text}


def config_from_dict(content: Mapping[str, Any]) -> CLIPConfig:
    """The config of `config_to_dict`."""
    sizes, text = dict(content["vision"]), content["text"]
    if content["kind"] == "resnet":
        sizes["blocks"] = tuple(sizes["blocks"])
    text_config = SigLIPTextConfig if content["kind"] == "siglip" else TextConfig
    return CLIPConfig(_KINDS[content["kind"]](**sizes), text_config(**text) if text else None)


def tokenizer_to_dict(tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    """A tokenizer's merges and ids as JSON; None for OpenAI's."""
    openai = Tokenizer.openai()
    if tokenizer is None or (tokenizer.ids, tokenizer.merges) == (openai.ids, openai.merges):
        return None
    merges = [(left, right) for left, right in tokenizer.merges]
    return {"merges": merges, "ids": None if tokenizer.ids == vocabulary(merges) else tokenizer.ids}


def tokenizer_from_dict(content: Mapping[str, Any] | None) -> Tokenizer | SigLIPTokenizer:
    """The tokenizer of `tokenizer_to_dict`, or of SigLIP's `tokenizer_record`.

    Raises:
      CheckpointError: a damaged record.
    """
    if content is None:
        return Tokenizer.openai()
    if "content" in content:
        return tokenizer_of(content)
    try:
        return Tokenizer([(left, right) for left, right in content["merges"]], content["ids"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"the record's tokenizer is damaged ({error}); convert its source again"
        ) from error
