"""Unary energies and images as published programs pass them to the CRF."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# BGR, as in Caffe models; spec clip_es, section 9; spec deeplab, sections 4 and 7.
BGR_MEAN = (104.008, 116.669, 122.675)


def unary_from_softmax(p: Array, scale: float | None = None, clip: float | None = 1e-5) -> Array:
    """Energies -log(p), float32, of scores p (..., c), which need not sum to 1.

    Args:
      p: float32 or float16. Each step is rounded to p's dtype, as in NumPy. CLIP-ES passes float16,
        whose energies differ by up to 5e-3 from those of float32.
      scale: confidence in p, in (0, 1]: p becomes scale * p + (1 - scale) / c; None: 1.
      clip: p is clipped to [clip, 1], so that no label is ruled out; None: no clipping.

    Raises:
      ValueError: p is not a float array, or `scale` or `clip` is not in (0, 1].
    """
    p = jnp.asarray(p)
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise ValueError(f"scores are {p.dtype}; convert them to a float type")
    for name, value in (("scale", scale), ("clip", clip)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} {value} must be in (0, 1]")
    kind = jnp.finfo(p.dtype)

    def rounded(x: Array) -> Array:
        # To p's dtype. XLA removes casts to float16 and back; reduce_precision stays, but flushes
        # subnormals, which matter in float16: 1e-5 is one.
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
    """Energies (..., classes) float32 of a label map (...) of probability `gt_prob`.

    The counterpart of pydensecrf's function of this name, for CRFs on hard labels.

    Args:
      labels: integers; with `zero_unsure` 0 for unknown and 1..classes, otherwise 0..classes-1.
      classes: number of labels of the CRF, at least 2.
      gt_prob: probability that a label is correct, in (0, 1).
      zero_unsure: whether label 0 means unknown, with equal energies for all classes.

    Spec densecrf, section 2.

    Raises:
      ValueError: fewer than two classes, or a probability not in (0, 1).
    """
    if classes < 2:
        raise ValueError(f"{classes} classes; a CRF needs at least two")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob {gt_prob} must be in (0, 1)")
    labels = jnp.asarray(labels)[..., None]
    is_label = labels == jnp.arange(classes) + zero_unsure
    energy = jnp.where(is_label, -math.log(gt_prob), -math.log((1 - gt_prob) / (classes - 1)))
    if zero_unsure:
        energy = jnp.where(labels == 0, math.log(classes), energy)
    return energy.astype(jnp.float32)


def wrapped_image(images: Array) -> Array:
    """The image that CLIP-ES, TagCLIP and deeplab-pytorch's `main.py crf` pass to the CRF.

    RGB uint8 (..., 3) -> BGR uint8 (..., 3): the mean is subtracted and the result cast to uint8,
    so that values below the mean wrap around to 255, 254, ... Published masks depend on this quirk.
    """
    centred = images[..., ::-1].astype(jnp.float32) - np.asarray(BGR_MEAN, np.float32)
    return (jnp.trunc(centred).astype(jnp.int32) % 256).astype(jnp.uint8)
