"""ReCLIP and ReCLIP++ rectification as a task: a prompt and a small head are trained.

Spec reclip, sections 9 to 14.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.methods.reclip.loss import rectification_loss
from clipseg_jax.methods.reclip.model import (
    BiasDecoder,
    PositionNet,
    ReCLIP,
    ReCLIPConfig,
    ReferencePrompt,
    filter_classes,
    reclip_image_tower,
)
from clipseg_jax.models.clip import CLIP, TextTransformer, with_class_token
from clipseg_jax.models.clip.transformer import Activation
from clipseg_jax.ops.gumbel import gumbel_noise
from clipseg_jax.ops.image import network_input
from clipseg_jax.task import Metrics, Task


def init_reclip(
    clip: CLIP,
    text_embeddings: ArrayLike,
    name_ids: Sequence[Sequence[int]],
    cfg: ReCLIPConfig,
    *,
    activation: Activation,
    class_token: ArrayLike | None = None,
    temperature: float | None = None,
    rngs: nnx.Rngs,
) -> ReCLIP:
    """An untrained model: the published initialisation around a frozen CLIP.

    Args:
      text_embeddings: (c, e) unit rows; name_ids: three for each class, from `reference_ids`.
      activation, class_token: see `reclip_image_tower`.
      temperature: of the loss's cosines; None: the CLIP's own.

    Raises:
      ValueError: a CLIP without a ViT or without a text tower, or lists of unequal length.
    """
    if clip.cfg.text is None:
        raise ValueError("ReCLIP needs a CLIP with its text tower: the reference prompt runs it")
    classes = len(name_ids)
    if classes != jnp.shape(text_embeddings)[0]:
        raise ValueError(
            f"{jnp.shape(text_embeddings)[0]} text embeddings for {classes} class names; make "
            "both from the same class list"
        )
    visual = reclip_image_tower(with_class_token(clip.visual, "ReCLIP"), activation, class_token)
    assert isinstance(clip.text, TextTransformer)
    sizes = visual.cfg.width, visual.cfg.embed_dim, classes
    head = BiasDecoder(*sizes, rngs=rngs) if cfg.plus_plus else PositionNet(*sizes, rngs=rngs)
    temperature = temperature or float(jnp.exp(clip.logit_scale[...]))
    cfg = dataclasses.replace(cfg, temperature=temperature)
    return ReCLIP(visual, text_embeddings, ReferencePrompt(clip.text, name_ids), head, cfg)


def trainable(path: str) -> bool:
    """Whether the optimiser owns the parameter of a dotted path."""
    return path == "reference.prompt" or path.startswith("head.")


def build(
    model: ReCLIP,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    threshold: float = 0.0,
) -> Task:
    """A model from `init_reclip` or a checkpoint as a task.

    For evaluation pass `frozen_reference(model)`; otherwise every batch computes the reference.

    Args:
      mean, std: pixel values, for training crops; evaluation normalises by its own config.
      threshold: of the class filter in `predict` (PD in the published configs); 0: no filter.
    """
    cfg = model.cfg

    def loss(
        model: ReCLIP, batch: dict[str, Array], key: Array, step: Array
    ) -> tuple[Array, Metrics]:
        del step  # the same at every step
        frozen = model.dense(network_input(batch["image"], batch["image_size"], mean, std))
        logits = model.rectify(frozen, train=True)
        parts = rectification_loss(
            logits,
            frozen.features,
            model.text_embeddings[...],
            batch["tags"],
            gumbel_noise(key, logits.shape),
            gumbel_scale=cfg.gumbel_scale,
            temperature=cfg.temperature,
        )
        return parts.loss, {"tags": jnp.mean(jnp.sum(batch["tags"], axis=1, dtype=jnp.float32))}

    def predict(model: ReCLIP, images: Array, sizes: Array) -> Array:
        frozen = model.dense(images, sizes)
        logits = filter_classes(model.rectify(frozen), frozen.real, cfg.filter_scale, threshold)
        return jnp.where(frozen.real[..., None], logits, 0)

    return Task(
        model=model,
        predict=predict,
        grid_size=model.visual.grid_sizes,
        trainable=trainable,
        loss=loss,
    )
