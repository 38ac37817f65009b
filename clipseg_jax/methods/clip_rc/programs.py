"""The programs of CLIP-RC's recipe, by shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.clip_rc import task
from clipseg_jax.methods.clip_rc.build import (
    build_model,
    class_words,
    inference_config,
    task_config,
)
from clipseg_jax.stages import programs as of


def programs(config: ConfigDict, workdir: Path, image_px: tuple[int, int]) -> Iterator[of.Program]:
    """A step of its training, and the evaluation."""
    of.random_embeddings(config, workdir, class_words(config))
    section = config.clip_rc
    built = task.build(build_model(config, workdir), task_config(config))
    groups = () if section.decay_norms else task.NORMS_DO_NOT_DECAY
    optim = OptimConfig(**section.optim.to_dict(), groups=groups)
    batch = of.crop_batch(section.batch_size, (section.crop_px, section.crop_px))
    yield of.training("train", config, "clip_rc", built, optim, batch)
    yield of.evaluation("evaluate", config, built, inference_config(config), image_px)
