"""Training as a config describes it: devices, loop, and epochs turned into steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipseg_jax.core.checks import check_whole
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.task import Task
from clipseg_jax.train import Evaluated, TrainConfig, TrainResult, train
from input_pipeline.batches.training import TrainingBatches

Batch = Mapping[str, np.ndarray]

_FEW_CORES, _OTHER_CORES = 8, 4  # the latter for all but the workers
_MOST_WORKERS = 32  # make more than eight TPU v5e take (benchmarks/README.md)


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
    evaluate: Callable[[nnx.Module, int], Evaluated] | None = None,
    add: Callable[[Batch], Batch] = dict,
    at: Mapping[int, Callable[[nnx.Module], None]] | None = None,
) -> TrainResult:
    """Trains `task` with what the config's `train` and `run` say.

    Args:
      name: of the stage; its checkpoints and its log are named after it.
      evaluate: (model, step) -> metrics and pictures, every `evaluate_every_steps`.
      add: batch -> the batch that the task's loss takes.
      at: step -> what is done with the model after that step.
    """

    processes = loader_processes(config.run.loader_processes)
    with contextlib.ExitStack() as streams:

        def batches(start: int) -> Iterator[Batch]:
            stream = data.batches(start, processes=processes)
            streams.callback(stream.close)
            return map(add, stream)

        return train(
            task,
            batches,
            optim,
            TrainConfig(
                total_steps=total_steps,
                seed=config.train.seed,
                accumulate_steps=config.train.accumulate_steps,
                log_every_steps=config.run.log_every_steps,
                checkpoint_every_steps=config.run.checkpoint_every_steps,
                keep_checkpoints=config.run.keep_checkpoints,
                evaluate_every_steps=evaluate_every_steps,
                profile_steps=config.run.profile_steps,
            ),
            mesh=training_mesh(config, data.batch_size),
            workdir=workdir,
            name=name,
            evaluate=evaluate if evaluate_every_steps else None,
            callbacks=at,
            example_names=[example.name for example in data.examples],
        )


def loader_processes(given: int | None) -> int:
    """How many worker processes make a training's rows; 0: threads do.

    None: threads where there are few cores; the threads of one process can use no more than these.
    """
    if given is not None:
        return given
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return 0 if cores <= _FEW_CORES else min(cores - _OTHER_CORES, _MOST_WORKERS)


def training_mesh(config: ConfigDict, batch_size: int) -> Mesh:
    """The first `run.devices`; by default as many as divide the batch (preflight.py warns)."""
    count = config.run.devices
    if count is None and jax.process_count() == 1:
        rows = batch_size // config.train.accumulate_steps
        count = max(n for n in range(1, jax.device_count() + 1) if rows % n == 0)
    return make_mesh(count, config.run.fsdp)


def in_steps(section: ConfigDict, name: str, steps_per_epoch: int) -> int:
    """`section.NAME_steps`, or `section.NAME_epochs` in steps where the first is None.

    Raises:
      ValueError: neither is given.
    """
    steps, epochs = section[f"{name}_steps"], section[f"{name}_epochs"]
    if steps is None and epochs is None:
        raise ValueError(f"no length of training; set {name}_steps or {name}_epochs")
    if steps is None:
        steps = check_whole(f"{name}_epochs", epochs, least=0) * steps_per_epoch
    return check_whole(f"{name}_steps", steps, least=0)
