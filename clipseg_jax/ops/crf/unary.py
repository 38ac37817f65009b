"""Unary energies and images as published programs hand them to the CRF."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Of BGR, as Caffe's models take them; spec clip_es, section 9; spec deeplab, sections 4 and 7.
BGR_MEAN = (104.008, 116.669, 122.675)


def unary_from_softmax(p: Array, scale: float | None = None, clip: float | None = 1e-5) -> Array:
    """Energies -log(p), float32, of scores p (..., c), which need not sum to 1.

    Args:
      p: float32 or a shorter float. Each step is rounded to p's type, as NumPy does it. CLIP-ES
        hands over float16: its energies then differ by up to 5e-3 from float32's.
      scale: trust in p, from 0 to 1: p becomes scale * p + (1 - scale) / c.
      clip: p is kept within [clip, 1], so that no label is excluded for good; None to leave it.

    Raises:
      ValueError: p is no float array, or `scale` or `clip` lies outside 0 to 1.
    """
    p = jnp.asarray(p)
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise ValueError(f"scores are {p.dtype}; convert them to a float type")
    for name, value in (("scale", scale), ("clip", clip)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} {value} must lie in 0 to 1, without 0")
    kind = jnp.finfo(p.dtype)

    def rounded(x: Array) -> Array:
        # To p's type. XLA leaves out a cast to float16 and back, and this flushes subnormals:
        # they matter in float16, where 1e-5 is one.
        near = jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
        if p.dtype != jnp.float16:
            return near
        return jnp.where(jnp.abs(x) < 2.0**-14, jnp.round(x * 2.0**24) * 2.0**-24, near)

    x = p.astype(jnp.float32)
    if scale is not None:
        x = rounded(rounded(rounded(jnp.float32(scale)) * x) + (1 - scale) / p.shape[-1])
    if clip is not None:
        x = jnp.clip(x, rounded(jnp.float32(clip)), 1)
    return -rounded(jnp.log(x))


def unary_from_labels(
    labels: Array, classes: int, gt_prob: float, *, zero_unsure: bool = True
) -> Array:
    """Energies (..., classes), float32, of a label map (...) that is right with `gt_prob`.

    With `zero_unsure` labels are 1..classes and 0 says nothing: all labels alike. Without, they
    are 0..classes-1. Spec densecrf, section 2.

    Raises:
      ValueError: fewer than two classes, or a probability outside 0 to 1.
    """
    if classes < 2:
        raise ValueError(f"{classes} classes; a CRF over labels needs two at least")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob {gt_prob} must lie between 0 and 1")
    labels = jnp.asarray(labels)[..., None]
    given = labels == jnp.arange(classes) + zero_unsure
    energy = jnp.where(given, -math.log(gt_prob), -math.log((1 - gt_prob) / (classes - 1)))
    if zero_unsure:
        energy = jnp.where(labels == 0, math.log(classes), energy)
    return energy.astype(jnp.float32)


def wrapped_image(images: Array) -> Array:
    """The image that CLIP-ES, TagCLIP and deeplab-pytorch's `main.py crf` give the CRF.

    RGB uint8 (..., 3) to BGR uint8: the mean is taken off and the rest cast to uint8, so that
    values below the mean wrap around to 255, 254, ... A published quirk; masks change without it.
    """
    centred = images[..., ::-1].astype(jnp.float32) - np.asarray(BGR_MEAN, np.float32)
    return (jnp.trunc(centred).astype(jnp.int32) % 256).astype(jnp.uint8)
