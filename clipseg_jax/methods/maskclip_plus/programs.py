"""The programs of MaskCLIP+'s recipe, by shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.maskclip_plus import task
from clipseg_jax.methods.maskclip_plus.build import build, inference, student_task, task_config
from clipseg_jax.stages import programs as of
from clipseg_jax.stages.clip import row_words


def programs(config: ConfigDict, workdir: Path, image_px: tuple[int, int]) -> Iterator[of.Program]:
    """A step of its training, and the student's evaluation."""
    of.random_embeddings(config, workdir, row_words(config))
    student = config.student
    model, _ = build(config, workdir)
    yield of.training(
        "train",
        config,
        "student",
        task.build(model, task_config(config)),
        OptimConfig(**student.optim.to_dict()),
        of.crop_batch(student.batch_size, student.crop_px),
    )
    alone, _ = build(config, workdir)
    alone.teacher = None
    yield of.evaluation("evaluate", config, student_task(alone), inference(config), image_px)
