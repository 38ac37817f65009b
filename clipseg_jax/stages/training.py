"""What every trained recipe does: the devices, the loop, and its values from the config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.task import Task
from clipseg_jax.train import TrainConfig, TrainResult, train
from input_pipeline.batches.training import TrainingBatches

Batch = Mapping[str, np.ndarray]


def run(
    config: ConfigDict,
    task: Task,
    data: TrainingBatches,
    optim: OptimConfig,
    workdir: Path,
    name: str,
    *,
    total_steps: int,
    evaluate_every_steps: int = 0,
    evaluate: Callable[[nnx.Module, int], dict[str, float]] | None = None,
    add: Callable[[Batch], Batch] = dict,
    at: Mapping[int, Callable[[nnx.Module], None]] | None = None,
) -> TrainResult:
    """Trains `task` as the config's `train` says.

    Args:
      total_steps: unless `config.train.steps` is less.
      evaluate: (model, step) -> metrics, so often.
      add: batch -> the batch that the task's loss takes.
      at: step -> what is done with the model once so many steps are done.
    """

    def batches(start: int) -> Iterator[Batch]:
        return map(add, data.batches(start))

    return train(
        task,
        batches,
        optim,
        TrainConfig(
            total_steps=min(total_steps, config.train.steps or total_steps),
            seed=config.train.seed,
            accumulate_steps=config.train.accumulate_steps,
            log_every_steps=config.train.log_every_steps,
            checkpoint_every_steps=config.train.checkpoint_every_steps,
            keep_checkpoints=config.train.keep_checkpoints,
            evaluate_every_steps=evaluate_every_steps,
        ),
        mesh=training_mesh(config, data.batch_size),
        workdir=workdir,
        name=name,
        evaluate=evaluate if evaluate_every_steps else None,
        callbacks=at,
        example_names=[example.name for example in data.examples],
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
