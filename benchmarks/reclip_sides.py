"""The two sides of `reclip_step`: ReCLIP++'s training steps, ours and the peer's."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import inputs
from benchmarks.reclip_counts import Work
from benchmarks.sides import (
    TOLERANCE,
    Ours,
    TorchStep,
    agreement,
    channels_first,
    torch_device,
)
from clipseg_jax.core.modules import initialised
from clipseg_jax.methods.reclip import distill_task as reclip_distill
from clipseg_jax.methods.reclip import task as reclip
from clipseg_jax.methods.reclip.model import ReCLIPConfig, frozen_reference
from clipseg_jax.models.clip import CLIP, CLIPConfig, TextConfig
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.gumbel import gumbel_noise
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input
from clipseg_jax.task import Task
from weights_convert.clip.build import flat_arrays

Kind = Literal["rectification", "distillation"]
TEACHER_THRESHOLD = 0.95  # of VOC; random logits are sharp enough to pass it


def make_work(batch: int, crop: int, classes: int, dtype: str, tiny: bool) -> Work:
    """A step with CLIP ViT-B/16 and a ResNet-50; `tiny`: of networks that run in a second.

    Raises:
      ValueError: a crop that is not a multiple of the patch size.
    """
    inputs.whole_patches(crop)
    vision = inputs.vision(dtype, tiny, activation="gelu", block_norm_eps=1e-6)
    text = TextConfig(77, 49408, 512, 12, 8, 512, dtype=dtype)
    student = DilatedResNetConfig(dtype=dtype)
    if tiny:
        text = TextConfig(77, 64, 32, 2, 2, 32, dtype=dtype)
        student = dataclasses.replace(inputs.TINY_STUDENT, dtype=dtype)
    tags = max(2, classes * 3 // 20)  # about the published share: 2 of 20, 13 of 59, 22 of 150
    return Work(vision, text, student, classes, tags, batch, crop)


def make_batch(work: Work) -> inputs.CropBatch:
    """Crops of coarse random colours with random tags; unlabelled except for an ignored border."""
    b, crop, c = work.batch, work.crop, work.classes
    rng = np.random.default_rng(inputs.SEED)
    batch = inputs.crops(rng, b, crop)
    tags = np.zeros((b, c), bool)
    for row, classes in zip(tags, inputs.shown_classes(rng, [work.tags] * b, c), strict=True):
        row[list(classes)] = True
    label = np.full((b, crop, crop), reclip_distill.UNLABELLED, np.int32)
    label[:, : crop // 8] = 255
    return batch | {"label": label, "tags": tags}


def make_task(work: Work, kind: Kind) -> Task:
    """The task with random weights."""
    clip = initialised(
        lambda rngs: CLIP(CLIPConfig(work.vision, work.text), rngs=rngs), inputs.SEED
    )
    clip.logit_scale[...] = jnp.asarray(math.log(100.0))
    rng = np.random.default_rng(inputs.SEED)
    text_embeddings = inputs.random_embeddings(rng, work.classes, work.vision.embed_dim)
    end = work.text.vocabulary - 1
    ids = [(int(i), end, 0) for i in rng.integers(1, end - 1, work.classes)]
    model = reclip.init_reclip(
        clip,
        text_embeddings,
        ids,
        ReCLIPConfig(),
        activation="gelu",
        rngs=nnx.Rngs(inputs.SEED),
    )
    if kind == "rectification":
        return reclip.build(model, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    student = initialised(
        lambda rngs: DeepLab(work.student, work.vision.embed_dim, rngs=rngs), inputs.SEED
    )
    inputs.calm_blocks(student)
    cfg = reclip_distill.DistillConfig(teacher_threshold=TEACHER_THRESHOLD)
    return reclip_distill.build(frozen_reference(model), student, cfg)


def peer(kind: Kind, work: Work, task: Task, batch: inputs.CropBatch) -> TorchStep:
    """The same step in PyTorch.

    Rectification optionally takes the Gumbel noise (b, n, c) of its masks; otherwise it draws it.
    """
    import torch

    from benchmarks import torch_reclip, torch_vit

    ours: Any = task.model
    arrays = {path: np.array(leaf) for path, leaf in flat_arrays(ours).items()}
    if kind == "rectification":
        text_embeddings = torch.from_numpy(arrays["text_embeddings"])
        ids = torch.tensor(ours.reference.name_ids)
        model: Any = torch_reclip.Rectifier(work.vision, work.text, text_embeddings, ids)
    else:
        text_embeddings, reference = (
            torch.from_numpy(arrays[f"teacher.{name}"])
            for name in ("text_embeddings", "reference.rows")
        )
        model = torch_reclip.Distiller(
            work.vision, work.student, text_embeddings, reference, TEACHER_THRESHOLD
        )
    torch_vit.load(model, arrays)
    device = torch_device()
    model = model.to(device).train()
    crops, real = map(jnp.asarray, (batch["image"], batch["image_size"]))
    # The published loader normalises images; our step does so itself.
    images = channels_first(network_input(crops, real, IMAGENET_MEAN, IMAGENET_STD))
    labels = torch.from_numpy(batch["label"]).long().to(device)
    tags = [np.flatnonzero(row).tolist() for row in batch["tags"]]

    def loss(noise: np.ndarray | None = None) -> Any:
        if kind == "distillation":
            return model.loss(images, labels, tags)
        gumbel = None if noise is None else torch.from_numpy(np.array(noise)).to(device)
        return model.loss(images, tags, gumbel)

    return TorchStep(loss, torch_reclip.optimizer(model), work.vision.dtype)


def differences(work: Work, ours: Ours, peer: TorchStep) -> dict[str, float]:
    """Relative differences of loss and gradient norm, before and after one update.

    Both sides must be untrained, with equal weights and images. They get equal Gumbel noise.

    Raises:
      ValueError: those of the first step are too large.
    """
    side = work.crop // work.vision.patch_px
    differences_of: dict[str, float] = {}
    for step, when, tolerance in ((0, "", TOLERANCE), (1, " after an update", {})):
        key = jax.random.fold_in(jax.random.key(inputs.SEED), step)  # as in `make_update`
        noise = gumbel_noise(key, (work.batch, side, side, work.classes))
        theirs = peer(np.asarray(noise).reshape(work.batch, side * side, -1), norm=True)
        step_differences = agreement(ours(), theirs, tolerance)
        differences_of |= {name + when: value for name, value in step_differences.items()}
    return differences_of
