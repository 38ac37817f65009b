"""The programs of WeCLIP's and WTCLIP's recipes, by shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.weclip import task
from clipseg_jax.methods.weclip.build import build_model, inference, task_config
from clipseg_jax.methods.weclip.masks import label_step
from clipseg_jax.stages import programs as of
from clipseg_jax.stages.clip import word_lists
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.inference import with_crf


def programs(config: ConfigDict, workdir: Path, image_px: tuple[int, int]) -> Iterator[of.Program]:
    """A step of its training, the evaluation without and with a CRF, and the pseudo labels."""
    classes, background = word_lists(config)
    of.random_embeddings(config, workdir, (*classes, *background))
    head = config.head
    model = build_model(config, workdir)
    built = task.build(model, task_config(config))
    batch = of.crop_batch(head.batch_size, head.crop_px, tags=((len(classes),), np.bool_))
    batch = {name: batch[name] for name in ("image", "index", "tags")}
    if head.padding == "ignored":
        batch["image_box"] = jax.ShapeDtypeStruct((head.batch_size, 4), np.int32)
    optim = OptimConfig(**head.optim.to_dict(), groups=task.GROUPS)
    yield of.training("train", config, "head", built, optim, batch)
    cfg = dataclasses.replace(inference(config), min_side_px=model.clip.visual.cfg.patch_px)
    yield of.evaluation("evaluate", config, built, cfg, image_px)
    refined = with_crf(cfg, config, "raw")
    yield of.evaluation("evaluate_crf", config, built, refined, image_px)
    plain = dataclasses.replace(cfg, ratios=(1.0,))
    bucket, network = of.padded(image_px, plain)
    count, classes_shown = config.run.batch_size, len(find_dataset(config.dataset).foreground)
    shapes = {
        "image": jax.ShapeDtypeStruct((count, *bucket, 3), np.uint8),
        "image_size": jax.ShapeDtypeStruct((count, 2), np.int32),
        "network_size": jax.ShapeDtypeStruct((count, 2), np.int32),
        "tags": jax.ShapeDtypeStruct((count, classes_shown), np.bool_),
    }
    step = functools.partial(label_step, model, plain)
    yield of.annotation("masks", count, step, nnx.state(model), shapes, network)
