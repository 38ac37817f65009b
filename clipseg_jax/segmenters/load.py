"""`clipseg_jax.load`: what a name or path stands for, as an object that segments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import weights_convert
from clipseg_jax.core.checks import check_choice
from clipseg_jax.segmenters.files import is_work_directory, of_file, of_work_directory
from clipseg_jax.segmenters.open_vocabulary import OpenVocabulary
from clipseg_jax.segmenters.runner import devices_and_batch
from clipseg_jax.segmenters.trained import Trained
from weights_convert.named.find import is_name
from weights_convert.trained.kinds import format_of

DTYPES = ("float32", "bfloat16")


def load_clip(
    weights: str | Path,
    *,
    dtype: str = "float32",
    devices: int | None = None,
    batch_size: int | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
) -> OpenVocabulary:
    """A CLIP that segments by any words; see `load` for the arguments.

    Raises:
      ValueError, OSError: as `load`; or what is not a CLIP with a text tower.
    """
    check_choice("dtype", dtype, DTYPES)
    weights_convert.check_choices(activation, heads)
    mesh, batch_size = devices_and_batch(devices, batch_size)
    path = _path(weights, "weights")
    loaded = weights_convert.load_clip(path, dtype=dtype, activation=activation, heads=heads)
    return OpenVocabulary(loaded, source=weights, mesh=mesh, batch_size=batch_size)


def load(
    model: str | Path,
    *,
    clip: str | Path | None = None,
    classes: Sequence[str] | None = None,
    dtype: str = "float32",
    devices: int | None = None,
    batch_size: int | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
) -> OpenVocabulary | Trained:
    """Loads a model that segments images.

    Args:
      model: one of
        a CLIP with a text tower, for any words: a name such as "ViT-B/16", "hf:owner/name" or
        "demo" (the built-in tiny one), see `weights_convert.find_weights`; or a file or folder as
        OpenAI, OpenCLIP or Hugging Face have them;
        the work directory of a finished recipe, for its classes;
        a trained file of any method, ours or released, for its classes.
      clip: of a trained network, the CLIP that it was trained with, if that is not where it was.
      classes: of a released file without names, those of its labels, "background" first where it
        is one.
      dtype: of a CLIP's computations, "float32" or "bfloat16"; a trained network has its own.
      devices: how many devices to use; None: all.
      batch_size: images per batch; None: 4, or on CPUs one per device.
      activation, heads: of a CLIP, where its file does not say them; see
        `weights_convert.load_clip`.

    Raises:
      ValueError: an argument without meaning, or a file that is not what it must be.
      FileNotFoundError: no file.
    """
    if not is_trained(model):
        if clip is not None or classes is not None:
            name = "clip" if clip is not None else "classes"
            raise ValueError(f"{name} is given with {model}, which is no trained network")
        return load_clip(
            model,
            dtype=dtype,
            devices=devices,
            batch_size=batch_size,
            activation=activation,
            heads=heads,
        )
    if (dtype, activation, heads) != ("float32", None, None):
        raise ValueError(
            f"{model} is a trained network, which has its own dtype, activation and heads; leave "
            "them out"
        )
    return load_trained(model, clip=clip, classes=classes, devices=devices, batch_size=batch_size)


def load_trained(
    model: str | Path,
    *,
    clip: str | Path | None = None,
    classes: Sequence[str] | None = None,
    devices: int | None = None,
    batch_size: int | None = None,
) -> Trained:
    """A trained network that segments its classes; see `load` for the arguments.

    Raises:
      ValueError, OSError: as `load`; or what is no trained network.
    """
    mesh, batch_size = devices_and_batch(devices, batch_size)
    path = _path(model, "model")
    clip = None if clip is None else _path(clip, "clip")
    if is_work_directory(path):
        if classes is not None:
            raise ValueError(f"{model} names its classes itself; leave them out")
        network, names = of_work_directory(path, clip)
    elif fmt := format_of(path):
        network, names = of_file(path, fmt, clip, classes)
    else:
        raise ValueError(f"{model} is no trained network; give a work directory or a trained file")
    return Trained(
        network, names.names, background=names.background, mesh=mesh, batch_size=batch_size
    )


def is_trained(model: str | Path) -> bool:
    """Whether this is a work directory or a trained file, and not a CLIP.

    Raises:
      ValueError, OSError: as `load`.
    """
    check_name(model, "model")
    if is_name(model) and not str(model).startswith(("http://", "https://")):
        return False  # nothing is downloaded to learn it
    path = _path(model, "model")
    return is_work_directory(path) or (path.is_file() and format_of(path) is not None)


def _path(model: str | Path, argument: str) -> Path:
    """The file or folder that an argument names; what is on no disk yet is downloaded."""
    check_name(model, argument)
    return weights_convert.find_weights(model)


def check_name(model: str | Path, argument: str) -> None:
    """Checks that an argument may name a model.

    Raises:
      ValueError: it is no text and no path.
    """
    if not isinstance(model, (str, os.PathLike)) or not str(model).strip():
        raise ValueError(
            f"{argument} is {model!r}; give a name such as 'ViT-B/16' or 'demo', or the path of a "
            "checkpoint"
        )
    if "\0" in str(model):
        raise ValueError(f"{argument} is {str(model)!r:.80}; no name or path has a NUL character")
