"""The programs of CLIP-ES's recipe, with TagCLIP's tags, by shapes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.clip_es import student_task
from clipseg_jax.methods.clip_es.build import inference
from clipseg_jax.methods.clip_es.cams import build_model, cam_step
from clipseg_jax.methods.clip_es.crf_masks import crf_step
from clipseg_jax.methods.clip_es.student import build
from clipseg_jax.methods.tagclip import tags_stage as tagclip
from clipseg_jax.models.deeplab_v2 import STATISTICS
from clipseg_jax.stages import programs as of
from clipseg_jax.stages.clip import whole_patches, word_lists
from clipseg_jax.stages.inference import with_crf

CLASSES_SHOWN = 4  # of an image; stages compile for 1, 2, 4, ...


def programs(config: ConfigDict, workdir: Path, image_px: tuple[int, int]) -> Iterator[of.Program]:
    """Tags, CAMs, CRF masks, a step of the student's training, its evaluations."""
    classes, background = word_lists(config)
    of.random_embeddings(config, workdir, (*classes, *background))
    if "tags" in config.stages:
        words = [word for words in word_lists(config, synonyms=False) for word in words]
        of.random_embeddings(config, workdir, words, tagclip.EMBEDDINGS)
        tags = tagclip.build_model(config, workdir)
        batch = _images(config, image_px, tags.visual.cfg.patch_px)
        step = functools.partial(tagclip.score_step, tags)
        yield of.annotation("tags", config.run.batch_size, step, nnx.state(tags), batch)
    model = build_model(config, workdir)
    patch_px = model.visual.cfg.patch_px
    batch = _images(config, image_px, patch_px) | _shown(config)
    count = config.run.batch_size
    step = functools.partial(cam_step, config, model)
    yield of.annotation("cams", count, step, nnx.state(model), batch)
    (height, width), _ = of.padded(image_px)
    grid = -(-height // patch_px), -(-width // patch_px)
    stored = {
        "image": jax.ShapeDtypeStruct((count, height, width, 3), np.uint8),
        "image_size": jax.ShapeDtypeStruct((count, 2), np.int32),
        "maps": jax.ShapeDtypeStruct((count, CLASSES_SHOWN, *grid), np.float32),
        "grids": jax.ShapeDtypeStruct((count, 2), np.int32),
        **_shown(config),
    }
    yield of.annotation("masks", count, functools.partial(crf_step, config), None, stored)
    if "train" not in config.stages:
        return
    student = config.student
    mean, std = STATISTICS[student.variant]
    cfg = student_task.DeepLabConfig(loss=student.loss, mean=mean, std=std)
    built = student_task.build(build(config), cfg)
    groups = student_task.groups(student.head_learning_rate_factor)
    optim = OptimConfig(**student.optim.to_dict(), groups=groups)
    crops = of.crop_batch(student.batch_size, student.crop_px)
    yield of.training("train", config, "student", built, optim, crops)
    plain = inference(config)
    yield of.evaluation("evaluate_student", config, built, plain, image_px)
    refined = with_crf(plain, config, config.masks.image)
    yield of.evaluation("evaluate_student_crf", config, built, refined, image_px)


def _images(config: ConfigDict, image_px: tuple[int, int], patch_px: int) -> dict[str, Any]:
    """Images resized to whole patches, in their bucket."""
    bucket, _ = of.padded(whole_patches(*image_px, patch_px))
    count = config.run.batch_size
    return {
        "image": jax.ShapeDtypeStruct((count, *bucket, 3), np.uint8),
        "image_size": jax.ShapeDtypeStruct((count, 2), np.int32),
        "valid": jax.ShapeDtypeStruct((count,), np.bool_),
    }


def _shown(config: ConfigDict) -> dict[str, Any]:
    shape = (config.run.batch_size, CLASSES_SHOWN)
    return {
        "classes": jax.ShapeDtypeStruct(shape, np.int32),
        "real": jax.ShapeDtypeStruct(shape, np.bool_),
    }
