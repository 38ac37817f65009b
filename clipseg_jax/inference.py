"""From uint8 images to label maps: resizing, sliding windows, scales and flips, inside one jit.

Used by evaluation and by `predict`. Spec maskclip, section 7. Scores at full size are never stored
for a whole image, only a grid of logits and two matrices (ops/window.py); `labels` makes label maps
of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from clipseg_jax.inference_config import InferenceConfig, check_values
from clipseg_jax.labels import Guide, class_probabilities, label_maps
from clipseg_jax.ops.image import normalize, opencv_resize
from clipseg_jax.ops.window import (
    add_margins,
    compose_resize,
    count_windows,
    crop_windows,
    grid_to_image,
    margins_to_multiple,
    window_starts,
)
from clipseg_jax.ops.window_scores import Scores, taps
from clipseg_jax.task import Task
from clipseg_jax.views import averaged_scores, mirror, size_of_view

__all__ = [
    "InferenceConfig",
    "check_values",
    "image_scores",
    "label_maps",
    "make_scores_fn",
    "make_segment_fn",
    "network_pixels",
    "network_shapes",
    "network_size",
    "network_sizes",
]

_MOST_PRODUCT = 2**31  # the resize computes with int32: twice the side before times that after


def network_size(
    height: int, width: int, cfg: InferenceConfig, ratio: float = 1.0
) -> tuple[int, int]:
    """(height, width) in pixels of an image at the network, at one of the test-time scales.

    Raises:
      ValueError: a side would be shorter than `cfg.min_side_px` pixels, or is too long.
    """
    if cfg.average == "logits":
        scaled = size_of_view((height, width), cfg.scale_px, ratio)
        smallest = size_of_view((height, width), cfg.scale_px, min(ratio, *cfg.ratios))
        if min(smallest) < cfg.min_side_px:
            scaled = smallest
    elif cfg.scale_px is None:
        scaled = int(height * ratio + 0.5), int(width * ratio + 0.5)
    else:
        a, b = int(cfg.scale_px[0] * ratio), int(cfg.scale_px[1] * ratio)
        if cfg.keep_ratio:
            factor = min(max(a, b) / max(height, width), min(a, b) / min(height, width))
            factor = factor if cfg.enlarge else min(factor, ratio)
            scaled = int(height * factor + 0.5), int(width * factor + 0.5)
        else:
            scaled = b, a
    if min(scaled) < cfg.min_side_px:
        raise ValueError(
            f"an image of {height} x {width} pixels would shrink to {scaled[0]} x {scaled[1]}; "
            "crop it to a less extreme shape"
        )
    resized = scaled != (height, width)
    if resized and 2 * max(scaled) * max(height, width) >= _MOST_PRODUCT:
        raise ValueError(
            f"an image of {height} x {width} pixels, {scaled[0]} x {scaled[1]} at the network, is "
            "too long to be resized exactly; crop it or scale it down"
        )
    return scaled


def network_sizes(size: tuple[int, int], cfg: InferenceConfig) -> list[tuple[int, int]]:
    """`network_size` at each of the config's ratios."""
    return [network_size(*size, cfg, ratio) for ratio in cfg.ratios]


def network_shapes(padded: tuple[int, int], cfg: InferenceConfig) -> tuple[tuple[int, int], ...]:
    """Static (height, width) per ratio that hold all images that fit `padded` at ratio 1."""

    def bound(side: int, ratio: float) -> int:
        if cfg.average == "logits":
            return -(-int(side * ratio) // 16) * 16
        # Rounding to whole pixels happens before and after: at most one pixel each.
        return side if ratio == 1.0 else -(-math.ceil((side + 1) * ratio + 1) // 16) * 16

    return tuple((bound(padded[0], r), bound(padded[1], r)) for r in cfg.ratios)


def network_pixels(
    images: Array,
    image_sizes: Array,
    network_size: Array,
    network_shape: tuple[int, int],
    cfg: InferenceConfig,
) -> Array:
    """Normalised images (b, *network_shape, 3) of padded uint8 images (b, h, w, 3).

    `image_sizes` and `network_size`: (b, 2) real pixels before and after the resize.
    """
    if network_shape != images.shape[1:3] or cfg.scale_px is not None or cfg.ratios != (1.0,):
        images = opencv_resize(images, image_sizes, network_size, network_shape)
    return normalize(images, cfg.mean, cfg.std)


def image_scores(
    task: Task,
    model: nnx.Module,
    images: Array,
    image_sizes: Array,
    network_size: Array,
    network_shape: tuple[int, int],
    cfg: InferenceConfig,
    *,
    flip: bool = False,
    rescale: bool = True,
) -> Scores:
    """Class scores of padded uint8 images (b, h, w, 3) at one network size.

    Args:
      task: `predict`, `grid_size` and `pixel_scores`.
      model: the task's model with its weights.
      images: (b, h, w, 3) uint8 RGB, padded at the bottom and right.
      image_sizes: (b, 2) real pixels.
      network_size: (b, 2) pixels at the network, all within the static `network_shape`.
      network_shape: static (height, width) at the network.
      cfg: how images reach the network.
      flip: predict on the mirror image; its scores are mirrored back.
      rescale: to the images' own size; otherwise rows and columns are those at the network.
    """
    pixels = network_pixels(images, image_sizes, network_size, network_shape, cfg)
    if flip:
        pixels = mirror(pixels, network_size[:, 1], axis=2)

    extents, frame = network_size, network_shape
    if cfg.mode == "slide":
        frame = cfg.crop_px
        extents = jnp.minimum(network_size, jnp.asarray(frame))
    multiple = cfg.pad_to_px or 1
    margins = [margins_to_multiple(extents[:, axis], multiple) for axis in (0, 1)]
    padded = jnp.stack([margin.sizes for margin in margins], axis=1)
    padded_frame = -(-frame[0] // multiple) * multiple, -(-frame[1] // multiple) * multiple
    grids = task.grid_size(padded)

    def predict(window: Array) -> Array:
        if cfg.pad_to_px:
            window = add_margins(window, extents, margins, padded_frame)
        return task.predict(model, window, padded)

    starts: tuple[Array | None, Array | None] = (None, None)
    crop: tuple[int | None, int | None] = (None, None)
    if cfg.mode == "whole":
        logits = predict(pixels)
    else:
        counts = [
            count_windows(*n) for n in zip(network_shape, cfg.crop_px, cfg.stride_px, strict=True)
        ]
        starts = tuple(  # type: ignore[assignment]
            window_starts(network_size[:, i], counts[i], cfg.crop_px[i], cfg.stride_px[i])
            for i in (0, 1)
        )
        crop = cfg.crop_px
        windows = crop_windows(pixels, starts, cfg.crop_px)  # type: ignore[arg-type]
        # One window of all images at a time: as much memory as whole images of the crop's size.
        logits = jax.lax.map(predict, windows)
        ny, nx = counts
        _, b, gh, gw, c = logits.shape
        logits = logits.reshape(ny, nx, b, gh, gw, c).transpose(2, 0, 3, 1, 4, 5)
        logits = logits.reshape(b, ny * gh, nx * gw, c)

    counts = [1 if each is None else each.shape[1] for each in starts]
    lengths = [logits.shape[1 + axis] // counts[axis] for axis in (0, 1)]
    # Without `pixel_scores` logits are mapped to the image directly, else the windows' pixels are.
    on_grid = task.pixel_scores is None
    in_sizes, in_lengths = (grids, lengths) if on_grid else (extents, frame)

    def with_margins(axis: int) -> dict[str, Any]:
        if not cfg.pad_to_px:
            return {}
        return {"margins": margins[axis], "padded_length": padded_frame[axis]}

    def matrix(axis: int) -> Array:
        result = grid_to_image(
            in_sizes[:, axis],
            network_size[:, axis],
            grid_length=in_lengths[axis],
            length=network_shape[axis],
            crop=crop[axis],
            starts=starts[axis],
            **(with_margins(axis) if on_grid else {}),
        )
        if flip and axis == 1:
            result = mirror(result, network_size[:, 1], axis=1)
        if rescale:
            sizes = network_size[:, axis], image_sizes[:, axis]
            result = compose_resize(result, *sizes, images.shape[1 + axis])
        return result

    if task.pixel_scores is None:
        return Scores(logits, matrix(0), matrix(1))
    to_pixels = [
        grid_to_image(
            grids[:, i],
            extents[:, i],
            grid_length=lengths[i],
            length=frame[i],
            **with_margins(i),
        )
        for i in (0, 1)
    ]
    # A bilinear resize reads two pixels, each of which lies in up to `overlap` windows.
    overlap = [-(-size // stride) + 1 for size, stride in zip(frame, cfg.stride_px, strict=True)]
    rows, columns = (taps(matrix(i), 2 * min(counts[i], overlap[i])) for i in (0, 1))
    return Scores(logits, rows, columns, (to_pixels[0], to_pixels[1]), task.pixel_scores)


# (state, images, image sizes, network sizes, network shapes) -> labels, winning scores
SegmentFn = Callable[[nnx.State, Array, Array, Array, tuple[tuple[int, int], ...]], tuple]
# The same and the longest side -> probabilities of all labels
ScoresFn = Callable[
    [nnx.State, Array, Array, Array, tuple[tuple[int, int], ...], int | None], Array
]


def make_segment_fn(
    task: Task, cfg: InferenceConfig, dtype: DTypeLike = jnp.int32
) -> tuple[nnx.State, SegmentFn]:
    """The model's state, and a function of batches to be jitted with its argument 4 static.

    The function takes state, images (b, h, w, 3) uint8, image_sizes (b, 2), network_sizes
    (b, ratios, 2) and network_shapes, one static (height, width) per ratio. It returns labels
    (b, h, w) of type `dtype` and the score (b, h, w) float32 of the winning class; see
    `labels.label_maps`.
    """
    graph, state = nnx.split(task.model)

    def segment(
        state: nnx.State,
        images: Array,
        image_sizes: Array,
        sizes: Array,
        network_shapes: tuple[tuple[int, int], ...],
    ) -> tuple[Array, Array]:
        model = nnx.merge(graph, state)
        views, guide = _views(task, model, images, image_sizes, sizes, network_shapes, cfg)
        return label_maps(views, cfg, dtype, sizes=image_sizes, guide=guide)

    return state, segment


def make_scores_fn(task: Task, cfg: InferenceConfig) -> tuple[nnx.State, ScoresFn]:
    """As `make_segment_fn`, for the probability of every label; arguments 4 and 5 are static.

    Argument 5 is the longest side in pixels of the maps, or None; the function returns them as
    (b, h', w', labels) float32, padded, see `labels.class_probabilities`.
    """
    graph, state = nnx.split(task.model)

    def scores(
        state: nnx.State,
        images: Array,
        image_sizes: Array,
        sizes: Array,
        network_shapes: tuple[tuple[int, int], ...],
        longest_px: int | None,
    ) -> Array:
        model = nnx.merge(graph, state)
        views, guide = _views(task, model, images, image_sizes, sizes, network_shapes, cfg)
        return class_probabilities(views, cfg, sizes=image_sizes, guide=guide, longest=longest_px)

    return state, scores


def _views(
    task: Task,
    model: nnx.Module,
    images: Array,
    image_sizes: Array,
    sizes: Array,
    network_shapes: tuple[tuple[int, int], ...],
    cfg: InferenceConfig,
) -> tuple[list[Scores], Guide]:
    """The scores of every scale and mirror image, and what a refinement follows."""
    if cfg.average == "logits":
        predict = functools.partial(task.predict, model)
        pixels = normalize(images, cfg.mean, cfg.std)
        scores = averaged_scores(
            predict,
            task.grid_size,
            pixels,
            image_sizes,
            sizes,
            network_shapes,
            cfg.ratios,
            flip=cfg.flip,
        )
        return [Scores(*scores)], Guide(images, pixels, image_sizes)
    # A ratio may be listed several times to weigh more; it is computed once.
    unique = {
        (ratio, flip): image_scores(
            task, model, images, image_sizes, sizes[:, i], network_shapes[i], cfg, flip=flip
        )
        for i, ratio in enumerate(cfg.ratios)
        if ratio not in cfg.ratios[:i]
        for flip in ((False, True) if cfg.flip else (False,))
    }
    views = [view for ratio in cfg.ratios for (r, _), view in unique.items() if r == ratio]
    sharpest = cfg.ratios.index(max(cfg.ratios))
    at_network = sizes[:, sharpest]
    # Compiled once with that view's.
    pixels = network_pixels(images, image_sizes, at_network, network_shapes[sharpest], cfg)
    return views, Guide(images, pixels, at_network)
