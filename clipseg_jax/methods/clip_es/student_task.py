"""Segmentation from label maps as a task: DeepLabV2 on masks, drawn by hand or by CLIP-ES.

Spec deeplab, sections 5 to 7; spec clip_es, section 10.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax import Array

from clipseg_jax.core.optim import Group
from clipseg_jax.models.deeplab_v2 import MEAN, STD, DeepLabV2
from clipseg_jax.ops.cross_entropy import balanced_cross_entropy, cross_entropy, downsample_labels
from clipseg_jax.ops.image import network_input, valid_mask
from clipseg_jax.task import Metrics, Task

OUTPUTS = ("full", "half", "three_quarters", "max")  # of the model, in its order
_LOSSES = {"mean": cross_entropy, "balanced": balanced_cross_entropy}


@dataclasses.dataclass(frozen=True)
class DeepLabConfig:
    """The published choices, and where they may be changed."""

    # "mean" over labelled pixels; "balanced": over background and foreground apart, added, which
    # users of CLIP-ES report to need with ImageNet's weights.
    loss: Literal["mean", "balanced"] = "mean"
    mean: tuple[float, float, float] = MEAN  # pixel values, RGB, of training crops
    std: tuple[float, float, float] = STD


PUBLISHED = DeepLabConfig()


def groups(head_learning_rate_factor: float = 10.0) -> tuple[Group, ...]:
    """Parameter groups: the classifiers' learning rate is the backbone's times the factor.

    Their biases' is twice that, without weight decay (spec deeplab, section 6).
    """
    return (
        Group(r"^aspp\.\d+\.kernel$", rate=head_learning_rate_factor),
        Group(r"^aspp\.\d+\.bias$", rate=2 * head_learning_rate_factor, weight_decay=0.0),
    )


def trainable(path: str) -> bool:
    """Whether the optimiser owns the parameter of a dotted path: all but the batch norms'."""
    return path.endswith(".kernel") or path.startswith("aspp.")


def build(model: DeepLabV2, cfg: DeepLabConfig = PUBLISHED) -> Task:
    """A model as a task; `groups()` are its published parameter groups.

    Training batches hold `image` (b, h, w, 3) pixel values, `image_size` (b, 2) and `label`
    (b, h, w), 255 ignored.

    Raises:
      ValueError: an unknown loss.
    """
    if cfg.loss not in _LOSSES:
        raise ValueError(f"loss {cfg.loss!r}: choose {' or '.join(_LOSSES)}")
    return Task(
        model=model,
        predict=predict,
        grid_size=model.grid_sizes,
        trainable=trainable,
        loss=lambda model, batch, key, step: loss(model, batch, cfg),
    )


def predict(model: DeepLabV2, images: Array, sizes: Array) -> Array:
    """The maximum of the scales' logits (b, g, k, c), 0 in the padding."""
    logits = model(images, sizes)[-1]
    real = valid_mask(model.grid_sizes(sizes), (logits.shape[1], logits.shape[2]))
    return jnp.where(real[..., None], logits, 0)


def loss(model: DeepLabV2, batch: dict[str, Array], cfg: DeepLabConfig) -> tuple[Array, Metrics]:
    """The sum of the four outputs' losses, each with the labels at its own size.

    Each is a mean over the labelled pixels of the whole batch handed in, on all devices; a batch
    without any has loss 0.
    """
    images = network_input(batch["image"], batch["image_size"], cfg.mean, cfg.std)
    parts = {
        f"loss_{name}": _LOSSES[cfg.loss](
            logits, downsample_labels(batch["label"], (logits.shape[1], logits.shape[2]))
        )
        for name, logits in zip(OUTPUTS, model(images), strict=True)
    }
    return jnp.sum(jnp.stack([*parts.values()])), parts
