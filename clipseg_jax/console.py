"""The installed commands, `clipseg-predict` and its like: the same as `python -m` of the modules.

A command's module takes seconds to import, so it is imported here after `commands.begin`.
"""

from __future__ import annotations

import importlib

from input_pipeline import commands

MODULES = {
    "clipseg-compile": "clipseg_jax.compile.__main__",
    "clipseg-convert": "weights_convert.__main__",
    "clipseg-export": "clipseg_jax.export.__main__",
    "clipseg-predict": "clipseg_jax.predict",
    "clipseg-prepare": "input_pipeline.prepare.__main__",
    "clipseg-reproduce": "clipseg_jax.reproduce.__main__",
    "clipseg-train": "clipseg_jax.main",
    "clipseg-web": "clipseg_jax.web.__main__",
}


def compile() -> int:
    """Says what a recipe needs of TPUs or GPUs that are not there."""
    return _run("clipseg-compile")


def convert() -> int:
    """Converts and inspects weights."""
    return _run("clipseg-convert")


def export() -> int:
    """Writes a model as StableHLO or ONNX."""
    return _run("clipseg-export")


def predict() -> int:
    """Masks of images and folders."""
    return _run("clipseg-predict")


def prepare() -> int:
    """Checks a dataset and makes its label files."""
    return _run("clipseg-prepare")


def reproduce() -> int:
    """Runs the published rows."""
    return _run("clipseg-reproduce")


def train() -> int:
    """Runs a recipe."""
    return _run("clipseg-train")


def web() -> int:
    """The web page."""
    return _run("clipseg-web")


def _run(name: str) -> int:
    commands.begin()
    return importlib.import_module(MODULES[name]).main()
