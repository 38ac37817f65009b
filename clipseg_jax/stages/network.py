"""What a recipe's last evaluation scores, for other uses: segmenting photos, exporting."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jax import Array
from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.inference_config import InferenceConfig
from clipseg_jax.task import Task

CONFIG = "config"  # the entry of a trained file's record that holds its recipe
# What says how a recipe runs, not what it makes.
_NOT_RECORDED = ("run", "stages")


class Network(NamedTuple):
    """A finished network, and how images reach it."""

    task: Task
    cfg: InferenceConfig
    # (model, normalised images (b, h, w, 3), real sizes (b, 2)) -> (b, gh, gw, e), what the class
    # scores are made of, on the grid of the scores
    features: Callable[[Any, Array, Array], Array]


def recorded(config: ConfigDict) -> dict[str, Any]:
    """The entries of a trained file's record that say which recipe made it.

    Folders are left out: a file may be given to others. Weights keep the name of their file.
    """
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_RECORDED}
    return {CONFIG: _without_folders(values)}


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out[key] = _without_folders(value)
        elif key == "root":
            out[key] = None
        elif isinstance(value, str) and Path(value) == TINY_CLIP:
            out[key] = "demo"
        elif isinstance(value, str) and os.path.exists(value):
            out[key] = Path(value).name
        else:
            out[key] = value
    return out
