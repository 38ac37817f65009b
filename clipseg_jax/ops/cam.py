"""Class activation maps (CAMs): normalisation, box masks, upsampling, labels, CRF energies.

Source: CLIP-ES; spec clip_es, sections 5 to 9. Maps are (b, k, h, w) with k classes per image, some
of which are padding. Masks named `real` are true for cells or classes that are not padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.ops.components import component_boxes_mask
from clipseg_jax.ops.window import grid_to_image

_EPSILON = 1e-7
_LEAST_PROBABILITY = 1.0013580322265625e-05  # 1e-5 as a float16
_ABSENT = 1e4  # unary energy of a padded class; exp(-energy) is exactly 0


def min_max_normalize(maps: Array, real: Array, epsilon: float = _EPSILON) -> Array:
    """(x - min) / (epsilon + max - min) of each map (b, k, h, w) over the cells `real` (b, h, w).

    Other cells and constant maps become 0.
    """
    real = real[:, None]
    low = jnp.min(jnp.where(real, maps, jnp.inf), axis=(2, 3), keepdims=True)
    maps = jnp.where(real, maps - low, 0.0)
    top = jnp.max(maps, axis=(2, 3), keepdims=True)
    scaled = maps / jnp.where(top > 0, epsilon + top, 1.0)
    # XLA may multiply by a reciprocal; x / x is then below 1, and 255 * x rounds down to 254.
    return scaled if epsilon else jnp.where((maps == top) & (top > 0), 1.0, scaled)


def activation_maps(raw: Array, real: Array) -> Array:
    """CAMs (b, k, h, w) in [0, 1): positive part of weighted activations, normalised twice.

    The published code normalises per layer and again over its single layer. For raw values near
    1e-5 the maximum is clearly below 1 after the first pass and 1 - 1e-7 after the second.
    """
    once = min_max_normalize(jnp.maximum(raw, 0.0), real)
    return min_max_normalize(once, real)


def box_masks(
    maps: Array, grids: Array, threshold: ArrayLike, *, cover_border: bool = False
) -> Array:
    """Union (b, k, h, w) bool of the bounding boxes of each map's high connected components.

    Args:
      maps: (b, k, h, w) in [0, 1]; 0 outside the real grids.
      grids: (b, 2) real rows and columns.
      threshold: number or (b, k); cells above this share of the map's maximum are high. Both sides
        are quantised to 255 steps.
      cover_border: let boxes include the last row and column of the grid; the published code
        excludes them.
    """
    steps = jnp.floor(255.0 * maps)
    top = jnp.max(steps, axis=(2, 3), keepdims=True)
    threshold = jnp.asarray(threshold, jnp.float32)
    threshold = threshold[..., None, None] if threshold.ndim else threshold
    ends = grids if cover_border else grids - 1
    return component_boxes_mask(steps > jnp.floor(threshold * top), ends[:, None])


def upsample(maps: Array, grids: Array, sizes: Array, shape: tuple[int, int]) -> Array:
    """Maps (b, k, h, w) of patches -> (b, k, *shape) of pixels, float32, bilinear as in OpenCV.

    The real `grids` (b, 2) are resized to the real `sizes` (b, 2) of the images within `shape`; the
    rest is 0.
    """
    rows, columns = (
        grid_to_image(
            grids[:, axis], sizes[:, axis], grid_length=maps.shape[2 + axis], length=shape[axis]
        )
        for axis in (0, 1)
    )
    return jnp.einsum("byh,bkhw,bxw->bkyx", rows, maps, columns, precision="highest")


def _half(x: Array) -> Array:
    """Rounds float32 to float16's precision; unlike a conversion, XLA does not optimise it away.

    Absolute values below 6.1e-5 become 0.
    """
    return jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)


def _top(cams: Array, real: Array) -> Array:
    """Largest score (b, h, w) float32 of any real class; 0 if there is none."""
    cams = cams.astype(jnp.float32)
    return jnp.max(jnp.where(real[..., None, None], cams, 0.0), axis=1)


def background_score(cams: Array, real: Array, threshold: float = 1.0) -> Array:
    """Score (b, h, w) float32 of the background, computed in float16 precision.

    `threshold` >= 1: (1 - best class score) ** threshold; below 1: the threshold itself.
    """
    top = _top(cams, real)
    if threshold < 1:
        return jnp.full_like(top, jnp.float16(threshold))
    rest = _half(1.0 - top)
    return rest if threshold == 1 else _half(rest**threshold)


def cam_labels(
    cams: Array, real: Array, classes: Array, thresholds: Sequence[float] = (1.0,)
) -> Array:
    """Labels (s, b, h, w) int32 of CAMs (b, k, h, w) float16, for each background threshold.

    `classes` (b, k) are class ids, valid where `real` (b, k). Class c gets the label c + 1, the
    background 0. Scores are compared in float16: ties are frequent and go to the background, then
    to the first class. Spec clip_es, section 8.
    """
    best, score = _best_class(cams, real)
    label = jnp.take_along_axis(classes[..., None, None] + 1, best[:, None], axis=1)[:, 0]
    return jnp.stack(
        [
            jnp.where(score > background_score(cams, real, t), label, 0).astype(jnp.int32)
            for t in thresholds
        ]
    )


def class_labels(cams: Array, real: Array, classes: Array) -> Array:
    """Labels (b, h, w) int32: per pixel the id in `classes` (b, k) of the best real class.

    Without a background class, as for COCO-Stuff (spec tagclip, section 8).
    """
    best, _ = _best_class(cams, real)
    labels = jnp.take_along_axis(classes[..., None, None], best[:, None], axis=1)[:, 0]
    return labels.astype(jnp.int32)


def _best_class(cams: Array, real: Array) -> tuple[Array, Array]:
    """Index and score (b, h, w) of the best real class; ties go to the first."""
    cams = jnp.where(real[..., None, None], cams.astype(jnp.float32), -jnp.inf)
    return jnp.argmax(cams, axis=1), jnp.max(cams, axis=1)


def cam_probabilities(cams: Array, real: Array, *, background: bool = True) -> Array:
    """Class scores (b, h, w, 1 + k) float32 from which CRF energies are computed, background first.

    In float16 precision, not normalised over classes; 0 for padded classes. Without `background`
    (b, h, w, k).
    """
    scores = jnp.where(real[..., None, None], cams.astype(jnp.float32), 0.0)
    if background:
        scores = jnp.concatenate([background_score(cams, real)[:, None], scores], axis=1)
    return jnp.moveaxis(scores, 1, -1)


def cam_unary(cams: Array, real: Array, *, background: bool = True) -> Array:
    """Unary energies (b, h, w, 1 + k) float32 = -log p of a dense CRF, in float16 precision.

    Padded classes get an energy whose probability is exactly 0. Spec clip_es, section 9.
    """
    scores = cam_probabilities(cams, real, background=background)
    energy = _half(-jnp.log(jnp.clip(scores, _LEAST_PROBABILITY, 1.0)))
    real = jnp.pad(real, ((0, 0), (int(background), 0)), constant_values=True)
    return jnp.where(real[:, None, None], energy, _ABSENT)


def pseudo_labels(marginals: Array, labels: Array, confidence: float = 0.95) -> Array:
    """Labels (b, h, w) int32 of CRF marginals (b, h, w, c); 255 where the maximum is too low.

    Args:
      marginals: (b, h, w, c).
      labels: (b, c) label of each class of the marginals, e.g. 0 and then class ids + 1.
      confidence: lowest marginal that is labelled; 0 labels every pixel.
    """
    best = jnp.argmax(marginals, axis=-1)
    winners = jnp.take_along_axis(labels[:, None, None], best[..., None], axis=-1)[..., 0]
    confident = jnp.max(marginals, axis=-1) >= confidence
    return jnp.where(confident, winners, 255).astype(jnp.int32)
