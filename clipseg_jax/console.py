"""The installed commands, `clipseg-predict` and its like: the same as `python -m` of the modules.

A command's module takes seconds to import, so each is imported here after `commands.begin`.
"""

from __future__ import annotations

import importlib

from input_pipeline import commands


def predict() -> int:
    """Masks of images and folders."""
    return _run("clipseg_jax.predict")


def train() -> int:
    """Runs a recipe."""
    return _run("clipseg_jax.main")


def convert() -> int:
    """Converts, inspects or exports weights."""
    return _run("weights_convert.__main__")


def prepare() -> int:
    """Checks a dataset and makes its label files."""
    return _run("input_pipeline.prepare.__main__")


def web() -> int:
    """The web page."""
    return _run("clipseg_jax.web.__main__")


def export() -> int:
    """Writes a model for other programs."""
    return _run("clipseg_jax.export.__main__")


def reproduce() -> int:
    """Runs the published rows."""
    return _run("clipseg_jax.reproduce.__main__")


def _run(module: str) -> int:
    commands.begin()
    return importlib.import_module(module).main()
