"""What every trained recipe does: batches of the training split, the loop, files of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.recipes.data import find_dataset
from clipseg_jax.tasks.base import Task
from clipseg_jax.train import TrainConfig, Trained, train
from input_pipeline.training import TrainingBatches, training


def run(
    config: ConfigDict,
    section: ConfigDict,
    task: Task,
    workdir: Path,
    name: str,
    *,
    tags: np.ndarray,
    unlabeled: bool = False,
    evaluate: Callable[[nnx.Module, int], dict[str, float]] | None = None,
) -> Trained:
    """Trains `task` as a config's `section` (rectify, distill) and its `train` say.

    Args:
      tags: (examples, c) bool, the hypothesis of each training image.
      unlabeled: classes in the labels are hidden (-1); what is ignored stays so.
      evaluate: (model, step) -> metrics, every `section.evaluate_every_epochs`.
    """
    data = _batches(config, section, unlabeled)

    def batches(start: int) -> Iterator[Mapping[str, np.ndarray]]:
        for batch in data.batches(start):
            yield {**batch, "tags": tags[batch["index"]]}

    an_epoch = data.steps_per_epoch
    total = section.epochs * an_epoch
    every = section.evaluate_every_epochs * an_epoch
    optim: dict[str, Any] = section.optim.to_dict()
    schedule = section.get("schedule_epochs") or section.epochs
    return train(
        task,
        batches,
        OptimConfig(**optim, hold_steps=an_epoch, schedule_steps=schedule * an_epoch),
        TrainConfig(
            total_steps=min(total, config.train.steps or total),
            seed=config.train.seed,
            accumulate_steps=config.train.accumulate_steps,
            log_every_steps=config.train.log_every_steps,
            checkpoint_every_steps=config.train.checkpoint_every_steps,
            keep_checkpoints=config.train.keep_checkpoints,
            evaluate_every_steps=every,
        ),
        mesh=training_mesh(config, section.batch_size),
        workdir=workdir,
        name=name,
        evaluate=evaluate if every else None,
        example_names=[example.name for example in data.examples],
    )


def _batches(config: ConfigDict, section: ConfigDict, unlabeled: bool) -> TrainingBatches:
    dataset = find_dataset(config.dataset)
    return training(
        dataset,
        dataset.index(config.dataset.root, config.dataset.train_split),
        batch_size=section.batch_size,
        scale=tuple(section.scale_px),
        crop_hw=tuple(section.crop_px),
        saturation_wrap=section.saturation_wrap,
        unlabeled=unlabeled,
        reshuffle=section.reshuffle,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
    )


def training_mesh(config: ConfigDict, batch_size: int) -> Mesh:
    """The devices that the config's `train` names; by default as many as a batch has use for."""
    count = config.train.devices
    if count is None and jax.process_count() == 1:
        found = jax.device_count()
        rows = batch_size // config.train.accumulate_steps
        count = max(n for n in range(1, found + 1) if rows % n == 0)
        if count < found:
            logging.warning(
                "%d of %d devices are used, for they share batches of %d; a batch size that is a "
                "multiple of %d would use all", count, found, rows, found,
            )  # fmt: skip
    return make_mesh(count, config.train.fsdp)
