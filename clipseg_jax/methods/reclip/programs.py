"""The programs of ReCLIP's recipe, by shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.reclip import task
from clipseg_jax.methods.reclip.build import (
    build_rectifier,
    distillation,
    distilled_inference,
    rectified_inference,
)
from clipseg_jax.methods.reclip.model import ReCLIP, frozen_reference
from clipseg_jax.methods.reclip.tags import crop_logits, window_px
from clipseg_jax.models.clip import with_class_token
from clipseg_jax.stages import programs as of
from clipseg_jax.stages.clip import load_clip, read_embeddings, row_words


def programs(config: ConfigDict, workdir: Path, image_px: tuple[int, int]) -> Iterator[of.Program]:
    """Tags, a step of rectification, its evaluation; a step of distillation, its evaluation."""
    of.random_embeddings(config, workdir, row_words(config))
    yield _tags(config, workdir)
    mean, std = tuple(config.clip.mean), tuple(config.clip.std)
    model, _ = build_rectifier(config, workdir)
    classes = model.text_embeddings.shape[0]
    tags = ((classes,), np.bool_)
    rectifier = config.rectifier
    yield of.training(
        "rectify",
        config,
        "rectifier",
        task.build(model, mean=mean, std=std),
        OptimConfig(**rectifier.optim.to_dict()),
        of.crop_batch(rectifier.batch_size, rectifier.crop_px, tags=tags),
    )
    rectified = _zeros(nnx.eval_shape(lambda: frozen_reference(model)))
    threshold = config.inference.class_threshold
    evaluated = task.build(rectified, mean=mean, std=std, threshold=threshold)
    yield of.evaluation("evaluate", config, evaluated, rectified_inference(config), image_px)
    if "distill" not in config.stages:
        return
    student = config.student
    distilled = distillation(config, rectified)
    yield of.training(
        "distill",
        config,
        "student",
        distilled,
        OptimConfig(**student.optim.to_dict()),
        of.crop_batch(student.batch_size, student.crop_px, tags=tags),
    )
    yield of.evaluation(
        "evaluate_distilled", config, distilled, distilled_inference(config), image_px
    )


def _zeros(model: ReCLIP) -> ReCLIP:
    """An abstract model with values, which cost nothing until they are read."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state))


def _tags(config: ConfigDict, workdir: Path) -> of.Program:
    """A batch of crops: windows of a sixth of the crop, or whole images."""
    visual = with_class_token(load_clip(config).model.visual, "the tagger")
    by_windows = config.tags.method == "windows"
    side = window_px(config.tags.crop_px) if by_windows else visual.cfg.image_px
    rows = jax.ShapeDtypeStruct(read_embeddings(config, workdir).shape, np.float32)
    count = config.run.crops_at_once
    crops = {"crops": jax.ShapeDtypeStruct((count, side, side, 3), np.uint8)}

    def trace(mesh):  # the tagger takes its crops alone
        of_mesh = of.sharded(mesh, crops)["crops"]
        state, text = of.replicated(mesh, (nnx.state(visual), rows))
        return crop_logits(visual, mesh).trace(state, text, of_mesh)

    return of.Program("tags", count, trace, "run")
