"""`clipseg_jax.load`: what a name or path stands for, as an object that segments."""

from __future__ import annotations

import os
from pathlib import Path

import weights_convert
from clipseg_jax.core.checks import check_choice
from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.segmenters.open_vocabulary import OpenVocabulary
from clipseg_jax.segmenters.runner import devices_and_batch

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
    if not isinstance(weights, (str, os.PathLike)) or not str(weights):
        raise ValueError(f"weights is {weights!r}; give the path of a CLIP checkpoint, or 'demo'")
    path = TINY_CLIP if weights == "demo" else weights
    loaded = weights_convert.load_clip(path, dtype=dtype, activation=activation, heads=heads)
    return OpenVocabulary(loaded, source=weights, mesh=mesh, batch_size=batch_size)


def load(
    model: str | Path,
    *,
    dtype: str = "float32",
    devices: int | None = None,
    batch_size: int | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
) -> OpenVocabulary:
    """Loads a model that segments images.

    Args:
      model: a CLIP with a text tower: "demo" (the built-in tiny one), a file or a folder, as
        OpenAI, OpenCLIP or Hugging Face have them.
      dtype: of the network's computations, "float32" or "bfloat16".
      devices: how many devices to use; None: all.
      batch_size: images per batch; None: 4, or on CPUs one per device.
      activation, heads: of a CLIP, where its file does not say them; see
        `weights_convert.load_clip`.

    Raises:
      ValueError: an argument without meaning, or a file that is not what it must be.
      FileNotFoundError: no file.
    """
    return load_clip(
        model,
        dtype=dtype,
        devices=devices,
        batch_size=batch_size,
        activation=activation,
        heads=heads,
    )
