"""From any supported checkpoint to a CLIP."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipseg_jax.models.clip import (
    CLIP,
    CLIPConfig,
    SigLIPTokenizer,
    Tokenizer,
)
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from weights_convert.clip import layouts
from weights_convert.clip.build import abstract, build, check_finite, config_of, expected_shapes
from weights_convert.clip.cache import (
    config_from_dict,
    config_to_dict,
    through_cache,
    tokenizer_from_dict,
    tokenizer_to_dict,
)
from weights_convert.clip.choices import Heads, check_choices, choose, warn_of_guesses
from weights_convert.clip.huggingface import (
    check_model_type,
    image_statistics,
    weights_file,
    with_side_files,
)
from weights_convert.clip.keys import OPENAI, RELEASED
from weights_convert.clip.record import load_converted_clip
from weights_convert.clip.shards import read_weights, sha256
from weights_convert.clip.siglip_tokenizer_files import tokenizer_record
from weights_convert.clip.tokenizer_files import read_tokenizer
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import FORMAT, Converted, is_converted
from weights_convert.formats.reader import Checkpoint
from weights_convert.named.find import find_weights

_log = logging.getLogger(__name__)
MISSING_TOKENIZER = (  # of SigLIP, which has no usual one
    "tokenizer, so it cannot read class names; put its tokenizer.json or spiece.model beside its "
    "weights"
)
Channels = tuple[float, float, float]
_SIGLIP_STATISTICS: Channels = (127.5, 127.5, 127.5)  # mean and deviation of all released SigLIPs


class LoadedCLIP(NamedTuple):
    """A CLIP ready to use."""

    model: CLIP
    # None: an image tower alone, or a SigLIP without its tokenizer's file.
    tokenizer: Tokenizer | SigLIPTokenizer | None
    meta: dict[str, Any]  # source, sha256, kind, layout, model, parameters, bytes, config

    @property
    def mean(self) -> Channels:
        """Mean of each channel with which images are normalised, of pixels from 0 to 255."""
        return _statistic(self.meta, "image_mean", CLIP_MEAN)

    @property
    def std(self) -> Channels:
        """Standard deviation of each channel, likewise."""
        return _statistic(self.meta, "image_std", CLIP_STD)


class CLIPFacts(NamedTuple):
    """What a checkpoint says of its CLIP, without the weights."""

    config: CLIPConfig
    temperature: float  # exp(logit_scale), the factor of its cosines
    mean: Channels  # with which images are normalised, of pixels from 0 to 255
    std: Channels


def _statistic(record: Mapping[str, Any], name: str, of_clip: Channels) -> Channels:
    if (shares := record.get(name)) is not None:
        red, green, blue = (255 * share for share in shares)
        return red, green, blue
    return _SIGLIP_STATISTICS if record["config"]["kind"] == "siglip" else of_clip


class Fitted(NamedTuple):
    """A checkpoint as a CLIP."""

    named: layouts.Named
    config: CLIPConfig
    arrays: dict[str, np.ndarray]  # by our paths
    guessed: list[str]  # of "activation", "heads": what neither the file nor one beside it says


def convert(
    path: str | Path,
    *,
    vision_only: bool = False,
    activation: str | None = None,
    heads: Heads | None = None,
) -> Converted:
    """Any supported checkpoint as arrays by our paths; views of the mapped file where possible.

    `activation`, `heads`: as in `load_clip`. What is assumed without them is warned of.

    Raises:
      CheckpointError: as `read`; lists every missing, unexpected and wrongly shaped key; weights
        that are not finite; heads that do not fit. ValueError: other choices.
      FileNotFoundError: no file.
    """
    check_choices(activation, heads)
    path = find_weights(path)
    return _choose(_convert(path, vision_only), path, activation, heads)


def _convert(path: Path, vision_only: bool) -> Converted:
    """A checkpoint without explicit choices."""
    weights_path = weights_file(path)
    if is_converted(weights_path):
        converted = load_converted_clip(weights_path)
        absent = converted.record["absent"]  # NaN; by OpenAI's names, which these paths share
        check_finite({k: v for k, v in converted.arrays.items() if k not in absent}, str(path))
        return _image_tower(converted) if vision_only else converted
    checkpoint = read_weights(weights_path)
    named, config, arrays, guessed = fit(checkpoint, path, weights_path, vision_only=vision_only)
    check_finite(named.stored, str(path))
    tokenizer = None
    if named.layout in layouts.SIGLIP_LAYOUTS:
        tokenizer = tokenizer_record(weights_path.parent) if config.text else None
    elif config.text and _has_tokenizer(path, weights_path, named.layout, config.text.vocabulary):
        tokenizer = tokenizer_to_dict(read_tokenizer(weights_path.parent))
    known = path.is_dir() or not _is_openai(checkpoint, named)
    mean, std = (known and image_statistics(named.layout, weights_path)) or (None, None)
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
        "guessed": guessed,
        "tokenizer": tokenizer,
        "image_mean": mean and list(mean),
        "image_std": std and list(std),
        "carried": {k: [str(v.dtype), v.tolist()] for k, v in named.carried.items()},
    }
    return Converted(arrays, record)


def fit(
    checkpoint: Checkpoint, path: Path, weights_path: Path, *, vision_only: bool = False
) -> Fitted:
    """A checkpoint's layout; its config, by shapes and JSON files beside it; arrays by our paths.

    Raises:
      CheckpointError: not a CLIP; or lists every missing, unexpected and wrongly shaped key.
    """
    check_model_type(weights_path)
    try:
        whole = layouts.identify(checkpoint.content)
        named = layouts.vision_only(whole) if vision_only else whole
        sizes = config_of(layouts.sketch(named))
        if named.layout == "siglip2":
            sizes = sizes.replace(position_resize="bilinear_antialias")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    config, known = sizes, _is_openai(checkpoint, whole)
    if not known or path.is_dir():  # a JSON file beside OpenAI's own file is of something else
        config, said = with_side_files(sizes, named.layout, weights_path)
        known = known or said
    guessed = [] if known else ["activation", "heads"]
    if named.layout in layouts.SIGLIP_LAYOUTS and not known:
        guessed = ["heads"]  # the activation is that of all SigLIPs
    weights = layouts.weights(named, expected_shapes(sizes), str(path))
    arrays = OPENAI.to_right(weights, abstract(sizes)[1], str(path))
    return Fitted(named, config, arrays, guessed)


def _is_openai(checkpoint: Checkpoint, named: layouts.Named) -> bool:
    """Whether it is evidently of OpenAI's models, whose activation and heads are known.

    Their archives are TorchScript, and their state dicts are of float16 with three numbers beside
    the weights; shapes tell nothing: LAION's ViT-B/16 has the same. MaskCLIP's code converts
    OpenAI's models only.
    """
    if checkpoint.kind == "torchscript" or named.layout.startswith("maskclip"):
        return True
    conv1 = named.stored.get("visual.conv1.weight")
    numbers = {"input_resolution", "context_length", "vocab_size"}
    return conv1 is not None and conv1.dtype == np.float16 and numbers <= named.carried.keys()


def _has_tokenizer(path: Path, weights_path: Path, layout: str, vocabulary: int) -> bool:
    """Whether a tokenizer beside the weights is theirs.

    It is in a directory that was given as such and beside a file of Hugging Face's names; beside
    another single file, a vocab.json is where OpenAI's does not fit.
    """
    if path.is_dir() or layout == "huggingface":
        return True
    fits = vocabulary == len(Tokenizer.openai().ids)
    return not fits and (weights_path.parent / "vocab.json").exists()


def _choose(
    converted: Converted, path: Path, activation: str | None, heads: Heads | None
) -> Converted:
    """The same with explicit choices in its record; warns of what is still guessed."""
    try:
        config = choose(config_from_dict(converted.record["config"]), activation, heads)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    explicit = {"activation": activation, "heads": heads}
    guessed = [name for name in converted.record.get("guessed", []) if explicit.get(name) is None]
    warn_of_guesses(path, config, guessed)
    record = converted.record | {"config": config_to_dict(config), "guessed": guessed}
    return Converted(converted.arrays, record)


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
    heads: Heads | None = None,
    norm_eps: float | None = None,
    dtype: str | None = None,
) -> LoadedCLIP:
    """A CLIP from a raw checkpoint, a Hugging Face directory, a converted file, or by name.

    Large raw files are converted once and kept in `cache_dir` (default: $CLIPSEG_JAX_CACHE, else
    ~/.cache/clipseg_jax).

    Args:
      path: a file or folder, or a name such as "ViT-B/16" or "hf:owner/name", see `find_weights`.
      vision_only: whether the text tower is left out.
      activation, norm_eps, dtype: replace those of the file, in each tower that has them.
      heads: of the image and of the text tower (without one the second is not used); replace those
        of the file. Without `activation` and `heads`, and without a file that says them, they are
        OpenAI's, with a warning unless the weights are evidently OpenAI's.

    Raises:
      CheckpointError: the file cannot be used; weights that are not finite; a tokenizer beside it
        with more ids than the model has embeddings. FileNotFoundError: no file.
      ValueError: choices that cannot be meant. CannotDownload: a name, and no network.
    """
    check_choices(activation, heads, norm_eps, dtype)
    path = find_weights(path)
    arrays, record = _choose(_converted(path, cache_dir, vision_only), path, activation, heads)
    replaced = {"norm_eps": norm_eps, "dtype": dtype}
    replaced = {name: value for name, value in replaced.items() if value is not None}
    config = config_from_dict(record["config"]).replace(**replaced)
    tokenizer, siglip = None, record["config"]["kind"] == "siglip"
    if config.text is not None and not (siglip and record["tokenizer"] is None):
        tokenizer = _tokenizer(path, record, config.text.vocabulary)
    model = build(arrays, config)
    meta = {k: v for k, v in record.items() if k not in ("carried", "tokenizer")}
    return LoadedCLIP(model, tokenizer, meta)


def _converted(path: Path, cache_dir: str | Path | None, vision_only: bool) -> Converted:
    weights_path = weights_file(path)

    def fresh() -> Converted:
        return _convert(path, vision_only)

    if is_converted(weights_path):
        return fresh()
    return through_cache(path, weights_path, cache_dir, vision_only, fresh)


def clip_facts(
    path: str | Path, *, activation: str | None = None, heads: Heads | None = None
) -> CLIPFacts:
    """What a checkpoint says of its CLIP; `load_clip` of the same file is then quick.

    Raises:
      CheckpointError, FileNotFoundError, ValueError, CannotDownload: as `load_clip`.
    """
    check_choices(activation, heads)
    path = find_weights(path)
    arrays, record = _choose(_converted(path, None, False), path, activation, heads)
    scale = np.asarray(arrays.get("logit_scale", math.log(100))).item()
    return CLIPFacts(
        config_from_dict(record["config"]),
        round(math.exp(scale), 3),  # released CLIPs were trained to 100.00000 or 99.99999
        _statistic(record, "image_mean", CLIP_MEAN),
        _statistic(record, "image_std", CLIP_STD),
    )


def _tokenizer(path: Path, record: dict[str, Any], rows: int) -> Tokenizer | SigLIPTokenizer:
    """The tokenizer of a record for a table of `rows` embeddings.

    One from beside the weights must fit that table. OpenAI's is assumed without one; if it does not
    fit, only texts cannot be read.
    """
    tokenizer = tokenizer_from_dict(record["tokenizer"])
    if isinstance(tokenizer, SigLIPTokenizer):
        if tokenizer.embeddings > rows:
            raise CheckpointError(
                f"{path} has {rows} token embeddings, and its tokenizer ids up to "
                f"{tokenizer.embeddings - 1}; put the {record['tokenizer']['file']} that it was "
                "trained with beside it"
            )
        return tokenizer
    highest = max(tokenizer.ids.values())
    if record["tokenizer"] is not None and highest >= rows:
        raise CheckpointError(
            f"{path} has {rows} token embeddings, and its tokenizer ids up to {highest}; put the "
            "vocab.json and merges.txt that it was trained with beside it"
        )
    if highest >= rows:
        return Tokenizer(tokenizer.merges, embeddings=rows)
    if record["tokenizer"] is None and rows > highest + 1:
        _log.warning(
            "%s has %d token embeddings; OpenAI's tokenizer of %d is assumed. If it was trained "
            "with another, put its vocab.json and merges.txt beside it",
            path, rows, highest + 1,
        )  # fmt: skip
    return tokenizer


def released(digest: str, path: Path) -> str | None:
    """The released model with this digest; warns if only the file's name is that of one."""
    if digest[:16] in RELEASED:
        return RELEASED[digest[:16]][0]
    if path.name in {file for _, file in RELEASED.values()}:
        _log.warning(
            "%s has the name of a released checkpoint but another sha256 (%s)", path, digest
        )
    return None
