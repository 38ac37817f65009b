"""The programs of MaskCLIP's recipe, by shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.methods.maskclip.build import build
from clipseg_jax.stages import programs as of
from clipseg_jax.stages.clip import row_words
from clipseg_jax.stages.inference import inference_config


def programs(config: ConfigDict, workdir: Path, image_px: tuple[int, int]) -> Iterator[of.Program]:
    """Its evaluation, of images of `image_px` (height, width)."""
    of.random_embeddings(config, workdir, row_words(config))
    task = build(config, workdir)
    yield of.evaluation("evaluate", config, task, inference_config(config), image_px)
