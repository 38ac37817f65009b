"""From class scores to labels: refinement along edges, small classes, background.

Spec maskclip, section 7; spec readouts, sections 6 and 7. Without refinement scores at full size
are never stored for a whole image: labels are computed some rows at a time, so that memory does not
grow with classes x pixels.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from clipseg_jax.inference_config import InferenceConfig
from clipseg_jax.ops.crf import CRFConfig, dense_crf, unary_from_softmax, wrapped_image
from clipseg_jax.ops.image import opencv_resize, valid_mask
from clipseg_jax.ops.pamr import PAMRConfig, pamr
from clipseg_jax.ops.par import par
from clipseg_jax.ops.resize import resize_within
from clipseg_jax.ops.window_scores import Scores, map_rows, resized_maps

_SCORES_AT_ONCE = 2**24  # pixels x classes at full size at any time, per device: 64 MB


class Guide(NamedTuple):
    """The images whose edges a refinement follows."""

    images: Array  # (b, h, w, 3) uint8 RGB, padded
    network: Array  # (b, h', w', 3) the same, normalised, as the network takes them
    network_sizes: Array  # (b, 2) real rows and columns of `network`


def label_maps(
    views: list[Scores],
    cfg: InferenceConfig,
    dtype: DTypeLike = jnp.int32,
    *,
    sizes: Array | None = None,
    guide: Guide | None = None,
) -> tuple[Array, Array]:
    """Labels (b, h, w) of the best class, of type `dtype`, and its probability (b, h, w) float32.

    The probability of a class is that of its most probable text embedding, so the labels are those
    of the best embeddings. With one view the argmax is of its scores and the probability is taken
    at `cfg.temperature`; several views (scales, mirror images) are averaged as `cfg.average` says.

    Args:
      views: scores of the same images.
      cfg: see its fields.
      dtype: of the labels.
      sizes: (b, 2) real pixels of padded images; None: no padding.
      guide: the images; needed with `cfg.refine` only.
    """
    b, height, width = views[0].shape
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.asarray([height, width]), (b, 2))
    refined_probabilities = False
    if cfg.refine is not None:
        assert guide is not None, "refinement follows images"
        views = [refine(views, sizes, guide, cfg)]
        refined_probabilities = not isinstance(cfg.refine, PAMRConfig)

    def decide(maps: list[Array], alive: Array | None = None) -> tuple[Array, Array]:
        probabilities = maps[0] if refined_probabilities else _probabilities(maps, cfg)
        scores = maps[0] if len(maps) == 1 else probabilities
        if alive is not None:
            scores = probabilities = jnp.where(alive[:, None, None], probabilities, 0)
        best = jnp.max(probabilities, axis=-1)
        labels = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        if cfg.embedding_labels is not None:
            labels = jnp.asarray(cfg.embedding_labels, jnp.int32)[labels]
        if alive is not None:
            labels = jnp.where(best > 0, labels, 0)  # no class is left
        return labels.astype(dtype), best

    at_once = _SCORES_AT_ONCE
    labels, best = map_rows(views, decide, at_once)
    if cfg.area_threshold > 0:
        rows = cfg.embedding_labels or tuple(range(views[0].logits.shape[-1]))
        alive = large_labels(labels, sizes, max(rows) + 1, cfg.area_threshold)
        alive = alive[:, jnp.asarray(rows)]  # of the text embeddings
        labels, best = map_rows(views, functools.partial(decide, alive=alive), at_once)
    if cfg.background_threshold > 0:
        background = jnp.asarray(cfg.background_label, dtype)
        labels = jnp.where(best < cfg.background_threshold, background, labels)
    return labels, best


def large_labels(labels: Array, sizes: Array, count: int, threshold: float) -> Array:
    """Which labels (b, count) of maps (b, h, w) are kept by an area threshold; 0 always is.

    The others have at most the share `threshold` of all pixels whose label is not 0. Padding
    outside the real `sizes` (b, 2) does not count. Spec readouts, section 6.
    """
    real = valid_mask(sizes, (labels.shape[1], labels.shape[2]))
    # One label at a time: XLA fuses comparison and sum, and no array is larger than a label map.
    pixels = jax.lax.map(
        lambda label: jnp.sum((labels == label) & real, axis=(1, 2)),
        jnp.arange(1, count, dtype=labels.dtype),
    ).T.astype(jnp.float32)  # (b, count - 1)
    large = pixels > threshold * jnp.sum(pixels, axis=1, keepdims=True)
    return jnp.pad(large, ((0, 0), (1, 0)), constant_values=True)


def class_probabilities(
    views: list[Scores],
    cfg: InferenceConfig,
    *,
    sizes: Array,
    guide: Guide,
    longest: int | None = None,
) -> Array:
    """Probabilities (b, h', w', labels) float32 of every label, refined as `cfg` says.

    Those of a label are the largest of its text embeddings'; a label without any has 0. Thresholds
    are left to the caller.

    Args:
      views: scores of the same images.
      cfg: see its fields.
      sizes: (b, 2) real pixels of the images.
      guide: the images.
      longest: maps of images with a longer side have this many pixels there; None: the image's.
    """
    _, height, width = views[0].shape
    small, at, views = _within(views, sizes, (height, width), longest)
    if cfg.refine is None:
        maps = _probabilities([view.at(view.rows) for view in views], cfg)
    else:
        maps = _refined(views, at, small, guide, sizes, cfg)
        if isinstance(cfg.refine, PAMRConfig):
            maps = _probabilities([maps], cfg)
    if cfg.embedding_labels is None:
        return maps.astype(jnp.float32)
    labels = jnp.asarray(cfg.embedding_labels, jnp.int32)
    count = max(cfg.embedding_labels) + 1
    best = jax.ops.segment_max(jnp.moveaxis(maps, -1, 0), labels, num_segments=count)
    return jnp.moveaxis(jnp.maximum(best, 0), 0, -1).astype(jnp.float32)  # of no rows: -inf


def refine(views: list[Scores], sizes: Array, guide: Guide, cfg: InferenceConfig) -> Scores:
    """Refined scores of images: with PAMR of scores, with PAR and CRF of probabilities.

    PAMR takes the mean of the views' scores (WeCLIP's views are averaged before), PAR and CRF the
    probabilities that would otherwise become labels. PAMR and PAR follow the normalised image that
    the network takes, resized from there (spec readouts, section 6), the CRF the image itself.

    Holds all scores of the batch in memory: h * w * c numbers for an image of h x w pixels, or of
    `cfg.refine_px` on its longest side where it is larger.
    """
    shape = (guide.images.shape[1], guide.images.shape[2])
    small, at, views = _within(views, sizes, shape, cfg.refine_px)
    return resized_maps(_refined(views, at, small, guide, sizes, cfg), at, sizes, shape)


def _within(
    views: list[Scores], sizes: Array, shape: tuple[int, int], longest: int | None
) -> tuple[tuple[int, int], Array, list[Scores]]:
    """Padded shape, real sizes (b, 2) and scores of images shrunk to `longest` pixels a side."""
    if longest is None or max(shape) <= longest:
        return shape, sizes, views
    small = (min(shape[0], longest), min(shape[1], longest))
    at = sizes_within(sizes, longest)
    return small, at, [view.sampled(sizes, at, small) for view in views]


def _refined(
    views: list[Scores],
    at: Array,
    small: tuple[int, int],
    guide: Guide,
    sizes: Array,
    cfg: InferenceConfig,
) -> Array:
    """What `refine` makes (b, *small, c) of views of real sizes `at`; images have `sizes`."""
    maps = [view.at(view.rows) for view in views]
    if isinstance(cfg.refine, CRFConfig):
        images = guide.images
        if small != images.shape[1:3]:
            images = opencv_resize(images, sizes, at, small)
        if cfg.crf_image == "wrapped":
            images = wrapped_image(images)
        unary = unary_from_softmax(_probabilities(maps, cfg))
        return dense_crf(unary, images, cfg.refine, sizes=at)
    images = resize_within(guide.network, guide.network_sizes, at, small)
    if isinstance(cfg.refine, PAMRConfig):
        return _channels_last(pamr(images, _channels_first(_mean(maps)), cfg.refine, at))
    assert cfg.refine is not None
    masks = par(images, _channels_first(_probabilities(maps, cfg)), cfg.refine, at)
    # Its weights sum to more than 1.
    return _channels_last(masks / jnp.sum(masks, axis=1, keepdims=True))


def sizes_within(sizes: Array, longest: int) -> Array:
    """Sizes (b, 2) shrunk to `longest` on their longer side where that exceeds it, rounded."""
    long = jnp.max(sizes, axis=1, keepdims=True)
    shrunk = jnp.maximum((2 * longest * sizes + long) // (2 * long), 1)
    return jnp.where(long > longest, shrunk, sizes)


def _mean(maps: list[Array]) -> Array:
    return functools.reduce(jnp.add, maps) / len(maps) if len(maps) > 1 else maps[0]


def _probabilities(maps: list[Array], cfg: InferenceConfig) -> Array:
    """Probabilities (b, h, w, c) of the views' scores (b, h, w, c)."""
    if len(maps) == 1 or cfg.average == "scores":
        return jax.nn.softmax(cfg.temperature * _mean(maps), axis=-1)
    return _mean([jax.nn.softmax(each, axis=-1) for each in maps])


def _channels_first(maps: Array) -> Array:
    return jnp.moveaxis(maps, -1, 1)


def _channels_last(maps: Array) -> Array:
    return jnp.moveaxis(maps, 1, -1)
