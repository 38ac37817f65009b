"""The programs that a recipe compiles, described by shapes alone.

For ahead-of-time compilation (`clipseg_jax.compile`): the same functions that the stages run, on a
mesh of devices that need not be there. A method lists its own in `methods/NAME/programs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from clipseg_jax.core.mesh import batch_sharding
from clipseg_jax.core.optim import OptimConfig, optimizer
from clipseg_jax.evaluate import evaluation_step
from clipseg_jax.inference import InferenceConfig, network_shapes, network_size
from clipseg_jax.stages.clip import EMBEDDINGS
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.task import Task
from clipseg_jax.train_step import abstract_state, jit_update, split_model
from input_pipeline.batches.buckets import plan_batches
from weights_convert import ARCHITECTURES, RANDOM

_TOTAL_STEPS = 1000  # of a schedule, of which no program depends


class Program(NamedTuple):
    """One program of a recipe.

    Attributes:
      name: of the stage that runs it.
      images: of one call, over all devices.
      trace: mesh -> the traced program with abstract arguments on it.
      section: of the config that has its `batch_size`.
    """

    name: str
    images: int
    trace: Callable[[Mesh], Any]
    section: str


def crop_batch(batch_size: int, crop_px: tuple[int, int], **more: Any) -> dict[str, Any]:
    """What `TrainingBatches` yields, as shapes; `more` entries are (shape of a row, dtype)."""
    rows = {
        "image": ((*crop_px, 3), np.uint8),
        "image_size": ((2,), np.int32),
        "label": (tuple(crop_px), np.int32),
        "index": ((), np.int32),
        **more,
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in rows.items()
    }


def training(
    name: str,
    config: ConfigDict,
    section: str,
    task: Task,
    optim: OptimConfig,
    batch: Mapping[str, Any],
) -> Program:
    """An update of the training stage `name`, whose batch size is `config.SECTION.batch_size`."""

    def trace(mesh: Mesh) -> Any:
        parts = split_model(task)
        tx = optimizer(optim, _TOTAL_STEPS)
        accumulate_steps = config.train.accumulate_steps
        update = jit_update(task, parts, tx, mesh, accumulate_steps=accumulate_steps)
        state, frozen = abstract_state(parts, tx, mesh)
        return update.trace(state, frozen, sharded(mesh, batch))

    return Program(name, config[section].batch_size, trace, section)


def evaluation(
    name: str, config: ConfigDict, task: Task, cfg: InferenceConfig, image_px: tuple[int, int]
) -> Program:
    """A batch of the evaluation stage `name`, of images of `image_px` (height, width) pixels."""

    def trace(mesh: Mesh) -> Any:
        classes = find_dataset(config.dataset).num_classes
        step: Any = evaluation_step(task, cfg, classes=classes, mesh=mesh)
        b, (bucket, network) = config.run.batch_size, padded(image_px, cfg)
        batch = {
            "image": jax.ShapeDtypeStruct((b, *bucket, 3), np.uint8),
            "image_size": jax.ShapeDtypeStruct((b, 2), np.int32),
            "label": jax.ShapeDtypeStruct((b, *bucket), np.int32),
            "valid": jax.ShapeDtypeStruct((b,), np.bool_),
            "network_size": jax.ShapeDtypeStruct((b, len(cfg.ratios), 2), np.int32),
        }
        state = replicated(mesh, nnx.state(task.model))
        return step.trace(state, sharded(mesh, batch), network_shapes(network, cfg))

    return Program(name, config.run.batch_size, trace, "run")


def annotation(
    name: str,
    images: int,
    step: Any,
    state: Any,
    batch: Mapping[str, Any],
    *static: Any,
) -> Program:
    """A batch of `images` images of the annotation stage `name`.

    Args:
      step: mesh -> the jitted function of (state, batch, *static), or without a state of the rest.
    """

    def trace(mesh: Mesh) -> Any:
        first = () if state is None else (replicated(mesh, state),)
        return step(mesh).trace(*first, sharded(mesh, batch), *static)

    return Program(name, images, trace, "run")


def random_embeddings(
    config: ConfigDict, workdir: Path, words: Sequence[str], name: str = EMBEDDINGS
) -> None:
    """Writes random unit rows for `words` where the stage `text` writes its embeddings."""
    vision = ARCHITECTURES[config.clip.weights.removeprefix(RANDOM)].vision
    rows = np.random.default_rng(0).standard_normal((len(words), vision.embed_dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(workdir / name, rows.astype(np.float32))


def padded(image_px: tuple[int, int], cfg: InferenceConfig | None = None) -> tuple[Any, Any]:
    """(height, width) of the bucket of images of one size, and of that at the network's input."""
    size = None if cfg is None else lambda h, w: network_size(h, w, cfg)
    (batch,) = plan_batches([image_px], 1, network_size=size)
    return batch.bucket_hw, batch.network_hw


def replicated(mesh: Mesh, tree: Any) -> Any:
    """`tree` as shapes, whole on every device."""
    return _with_sharding(NamedSharding(mesh, PartitionSpec()), tree)


def sharded(mesh: Mesh, batch: Mapping[str, Any]) -> Any:
    """`batch` as shapes, its rows over all devices."""
    return _with_sharding(batch_sharding(mesh), dict(batch))


def _with_sharding(sharding: NamedSharding, tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
