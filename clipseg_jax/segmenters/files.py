"""Trained networks of work directories and files, as the recipes that made them say."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.config_names import with_new_names
from clipseg_jax.core.files import read_json
from clipseg_jax.segmenters.recorded import REMEDY, check_recorded_clip, put, recorded_config
from clipseg_jax.segmenters.released import released_config
from clipseg_jax.stages.clip import embed_words, row_words, word_lists
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.network import CONFIG, Network
from clipseg_jax.stages.work_directory import CONFIG as RECORD
from clipseg_jax.stages.work_directory import flat, recorded_content
from configs.base import loops
from weights_convert import CheckpointError, Format
from weights_convert.formats.reader import DAMAGE, described

# Those with a module `build` that has a function `network`; the last ones run on a frozen CLIP.
_METHODS = ("maskclip_plus", "clip_es", "maskclip", "readouts", "reclip", "weclip", "clip_rc")
_ON_CLIP = _METHODS[2:]


class Classes(NamedTuple):
    """The labels of a network."""

    names: tuple[str, ...]
    background: bool  # whether the first one is it


def is_work_directory(path: Path) -> bool:
    """Whether a folder is a recipe's, finished or not; those of Hugging Face have the file too."""
    record = path / RECORD
    return record.is_file() and (
        any(path.glob("*.done.json")) or b'"stages"' in record.read_bytes()
    )


def of_work_directory(folder: Path, clip: str | Path | None) -> tuple[Network, Classes]:
    """The network of a finished recipe.

    `clip`: where its CLIP is now, if not where it was.

    Raises:
      ValueError: not finished, damaged, or of another version.
      FileNotFoundError: weights that the recipe used are not there any more.
    """
    remedy = "run its recipe again, or give the trained file in it"
    config = _config(read_json(folder / RECORD, remedy), str(folder))
    return _network(config, folder, str(folder), clip or _absolute_clip(config, folder))


def _absolute_clip(config: ConfigDict, folder: Path) -> str | None:
    """Where the recipe's CLIP was, if its path leads nowhere from this folder; None: as it says."""
    weights = config.clip.get("weights")
    absolute = recorded_content(folder).get("clip.weights", {}).get("absolute")
    if not weights or not isinstance(absolute, str) or Path(weights).exists():
        return None
    return absolute if Path(absolute).exists() else None


def of_file(
    path: Path, fmt: Format, clip: str | Path | None, classes: Sequence[str] | None
) -> tuple[Network, Classes]:
    """The network of a trained file, ours or released.

    A file of ours records its recipe; a released one is read with the published values.

    Args:
      clip: weights of the CLIP that it was trained with, where the file needs them.
      classes: names of the labels where the file has none; "background" first where it is one.

    Raises:
      ValueError: a missing argument, or a file that is not what it must be.
    """
    arrays, record = weights_convert.load_trained(path, fmt)
    if classes is not None and record["classes"] is not None:
        raise ValueError(f"{path} names its classes itself; leave them out")
    source, recorded = str(path), record.get(CONFIG) is not None
    if recorded:
        config = _as_it_runs_here(recorded_config(record, fmt, arrays, source))
    else:
        config = released_config(path, fmt, record, classes)
    section = {"weclip": "head", "clip_rc": "clip_rc", "reclip": "rectifier"}.get(config.method)
    if section is None or (config.method == "reclip" and record.get("stage") == "distillation"):
        section = "student"
    with tempfile.TemporaryDirectory(prefix="clipseg_jax_") as folder:
        try:
            config[section].trained_weights = source
            if recorded and clip is None and config.method in _ON_CLIP:
                config.clip.weights = check_recorded_clip(config.clip.weights, source)
            return _network(config, Path(folder), source, clip, embed=True)
        except ValueError as error:
            if not recorded:
                raise
            named = source in str(error)
            raise CheckpointError(str(error) if named else f"{source}: {error}") from error
        except DAMAGE as error:
            if not recorded:
                raise
            if isinstance(error, (KeyError, AttributeError)):  # what the config lacks
                raise _other_version(source) from error
            raise CheckpointError(
                f"{source}: its record makes no network ({described(error)}); {REMEDY}"
            ) from error


def _config(stored: Any, source: str) -> ConfigDict:
    """The config that a file of `source` records, with today's names.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(stored, Mapping) or stored.get("method") not in _METHODS:
        method = stored.get("method") if isinstance(stored, Mapping) else stored
        raise ValueError(
            f"{source} is of no method that segments ({method!r:.40}); those are "
            f"{', '.join(_METHODS)}"
        )
    values: dict[str, Any] = {}
    for name, value in with_new_names(flat(stored)).items():
        put(values, name, value)
    return _as_it_runs_here(ConfigDict(values))


def _as_it_runs_here(config: ConfigDict) -> ConfigDict:
    """How it ran says nothing of how it runs here."""
    config.run = loops.run()
    config.run.remat = False
    return config


def _network(
    config: ConfigDict,
    folder: Path,
    source: str,
    clip: str | Path | None,
    *,
    embed: bool = False,
) -> tuple[Network, Classes]:
    """The network of a config; `embed`: the texts first, into `folder`."""
    module = importlib.import_module(f"clipseg_jax.methods.{config.method}.build")
    try:
        config.dataset.root = config.dataset.root or ""
        if config.method in _ON_CLIP:
            if clip is not None:
                config.clip.weights = str(clip)
            _check_clip(config, source)
            if embed:
                embed_words(config, folder, _words(config))
        network = module.network(config, folder)
        dataset = find_dataset(config.dataset)
    except AttributeError as error:
        if not isinstance(error.args[0], KeyError):  # what a config raises of a missing value
            raise
        raise _other_version(source) from error
    return network, Classes(dataset.class_names, dataset.background)


def _words(config: ConfigDict) -> list[str]:
    """What the stage `text` of a method embeds."""
    if config.method == "weclip":
        return [word for words in word_lists(config) for word in words]
    if config.method == "clip_rc":
        return list(find_dataset(config.dataset).class_names)
    return row_words(config)


def _check_clip(config: ConfigDict, source: str) -> None:
    weights = config.clip.weights
    if not weights:
        raise CheckpointError(
            f"{source} holds what was trained on top of a CLIP; give the CLIP that it was trained "
            "with: clip='ViT-B-16.pt', or --clip"
        )
    try:
        weights_convert.weights_file(weights_convert.find_weights(weights))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{source} was trained on the CLIP {weights}, which is not there; say where it is: "
            "clip=FILE, or --clip"
        ) from error


def _other_version(source: str) -> ValueError:
    return CheckpointError(
        f"{source} was made by another version of this library, whose configuration has other "
        "values; run its recipe again with this version"
    )
