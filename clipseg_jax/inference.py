"""From uint8 images to label maps: resizing, sliding windows, scales and flips, inside one jit.

Used by evaluation and by `predict`. Spec maskclip, section 7. Scores at full size are never stored
for a whole image, only a grid of logits and two matrices (ops/window.py); labels are computed some
rows at a time, so memory does not grow with classes x pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from clipseg_jax.core.checks import check_choice, check_number, check_sizes, check_whole
from clipseg_jax.ops.crf import CRFConfig, dense_crf, unary_from_softmax, wrapped_image
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
from clipseg_jax.ops.window_scores import Scores, map_rows, taps
from clipseg_jax.task import Task
from clipseg_jax.views import averaged_scores, mirror, size_of_view

_MOST_PRODUCT = 2**31  # the resize computes with int32: twice the side before times that after
_SCORES_AT_ONCE = 2**24  # pixels x classes at full size at any time, per device: 64 MB


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How images reach the network and how its logits become labels.

    Raises:
      ValueError: a value that has no meaning; the message names it and what is taken.
    """

    mean: tuple[float, float, float]  # of RGB, in pixel values 0 to 255
    std: tuple[float, float, float]
    # (long, short) side in pixels: the largest size that exceeds neither, keeping the aspect; with
    # keep_ratio False (width, height) exactly; None: images are not resized.
    scale_px: tuple[int, int] | None = (2048, 512)
    keep_ratio: bool = True
    mode: Literal["whole", "slide"] = "whole"
    crop_px: tuple[int, int] = (512, 512)  # (height, width), "slide" only
    stride_px: tuple[int, int] = (341, 341)
    # Windows, or whole images, are padded with zeros on all sides to a multiple of these pixels; 0:
    # as the network pads.
    pad_to_px: int = 0
    min_side_px: int = 1  # shortest side in pixels at the network; a shorter one raises ValueError
    ratios: tuple[float, ...] = (1.0,)  # test-time scales of scale_px
    # How several views are averaged: "probabilities" at full size, or "logits" on the grid of the
    # first view, which selects WeCLIP's protocol as a whole: see `views`.
    average: Literal["probabilities", "logits"] = "probabilities"
    flip: bool = False  # average with the mirror image
    # Label of each text embedding; None: its index. Several embeddings may share a label
    # (background words).
    embedding_labels: tuple[int, ...] | None = None
    # Pixels whose best probability is lower get `background_label`; 0: off.
    background_threshold: float = 0.0
    background_label: int = 0
    temperature: float = 100.0  # multiplies the scores of one view before their softmax
    # Dense CRF on the probabilities (the softmax of one view, the mean of several); None: off. Its
    # image: "wrapped" as in deeplab-pytorch (see `ops.crf.wrapped_image`), or "raw" RGB.
    crf: CRFConfig | None = None
    crf_image: Literal["wrapped", "raw"] = "wrapped"

    def __post_init__(self) -> None:
        for name in ("mean", "std", "ratios"):
            self._set(name, _numbers(name, getattr(self, name), positive=name != "mean"))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean {self.mean} and std {self.std} need three numbers each, of RGB")
        check_choice("keep_ratio", self.keep_ratio, (True, False))
        if self.scale_px is not None:
            order = "(long side, short side)" if self.keep_ratio else "(width, height)"
            self._set("scale_px", check_sizes("scale_px", self.scale_px, order))
        for name in ("crop_px", "stride_px"):
            self._set(name, check_sizes(name, getattr(self, name)))
        check_choice("mode", self.mode, ("whole", "slide"))
        check_choice("average", self.average, ("probabilities", "logits"))
        check_choice("flip", self.flip, (True, False))
        check_choice("crf_image", self.crf_image, ("wrapped", "raw"))
        if self.mode == "slide" and any(
            stride > crop for stride, crop in zip(self.stride_px, self.crop_px, strict=True)
        ):
            raise ValueError(
                f"stride_px {self.stride_px} exceeds crop_px {self.crop_px}: pixels between the "
                "windows would have no scores; give a stride from 1 to the crop"
            )
        if self.average == "logits" and (
            self.mode == "slide" or not self.keep_ratio or self.pad_to_px
        ):
            raise ValueError(
                "average='logits' takes whole images that keep their ratio; give mode='whole', "
                "keep_ratio=True and pad_to_px=0, or average='probabilities'"
            )
        check_whole("min_side_px", self.min_side_px)
        check_whole("pad_to_px", self.pad_to_px, 0)
        if self.embedding_labels is not None:
            if not len(self.embedding_labels):
                raise ValueError("embedding_labels is empty; give a label for each text embedding")
            labels = (check_whole("embedding_labels", label, 0) for label in self.embedding_labels)
            self._set("embedding_labels", tuple(labels))
        check_number("background_threshold", self.background_threshold, 0, 1)
        check_whole("background_label", self.background_label, 0)
        check_number("temperature", self.temperature, 0, above=True)
        if self.crf is not None and not isinstance(self.crf, CRFConfig):
            raise ValueError(f"crf is {self.crf!r}; give an ops.crf.CRFConfig or None")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # of a frozen dataclass


def check_values(values: Mapping[str, Any]) -> None:
    """Checks a recipe's values of the names that `InferenceConfig` has; others are not its own.

    Raises:
      ValueError: see `InferenceConfig`.
    """
    fields = {field.name for field in dataclasses.fields(InferenceConfig)}
    own = {name: value for name, value in values.items() if name in fields}
    InferenceConfig(**{"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **own})


def _numbers(name: str, values: object, *, positive: bool) -> tuple[float, ...]:
    """A tuple of at least one finite number."""
    if not isinstance(values, (tuple, list)) or not values:
        raise ValueError(f"{name} is {values!r}; give a tuple of at least one number")
    low = 0.0 if positive else -math.inf
    return tuple(check_number(name, value, low, above=positive) for value in values)


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
    if network_shape != images.shape[1:3] or cfg.scale_px is not None or cfg.ratios != (1.0,):
        pixels = opencv_resize(images, image_sizes, network_size, network_shape)
    else:
        pixels = images
    if flip:
        pixels = mirror(pixels, network_size[:, 1], axis=2)
    pixels = normalize(pixels, cfg.mean, cfg.std)

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


def label_maps(
    views: list[Scores], cfg: InferenceConfig, dtype: DTypeLike = jnp.int32
) -> tuple[Array, Array]:
    """Labels (b, h, w) of the best class, of type `dtype`, and its probability (b, h, w) float32.

    With one view the argmax is of its scores and the probability is taken at `cfg.temperature`;
    with several (scales, mirror images) both are of the mean of their softmax maps, as published.
    """

    def decide(maps: list[Array]) -> tuple[Array, Array]:
        if len(maps) == 1:
            scores = maps[0]
            best = jnp.max(jax.nn.softmax(cfg.temperature * scores, axis=-1), axis=-1)
        else:
            scores = _mean_probabilities(maps)
            best = jnp.max(scores, axis=-1)
        labels, best = _to_labels(jnp.argmax(scores, axis=-1).astype(jnp.int32), best, cfg)
        return labels.astype(dtype), best

    return map_rows(views, decide, _SCORES_AT_ONCE)


def _mean_probabilities(maps: list[Array]) -> Array:
    """Mean softmax (b, h, w, c) of the views' scores (b, h, w, c)."""
    return functools.reduce(jnp.add, [jax.nn.softmax(m, axis=-1) for m in maps]) / len(maps)


def _to_labels(labels: Array, best: Array, cfg: InferenceConfig) -> tuple[Array, Array]:
    """Maps indices of text embeddings to labels, and improbable pixels to the background."""
    if cfg.embedding_labels is not None:
        labels = jnp.asarray(cfg.embedding_labels, jnp.int32)[labels]
    if cfg.background_threshold > 0:
        labels = jnp.where(best < cfg.background_threshold, cfg.background_label, labels)
    return labels, best


def crf_label_maps(
    views: list[Scores], images: Array, sizes: Array, cfg: InferenceConfig
) -> tuple[Array, Array]:
    """Labels (b, h, w) int32 after the config's dense CRF, and their marginals (b, h, w).

    Holds all class probabilities of the batch in memory: h * w * c numbers per image.
    """
    scores = _mean_probabilities([v.at(v.rows) for v in views])
    assert cfg.crf is not None
    guide = wrapped_image(images) if cfg.crf_image == "wrapped" else images
    marginals = dense_crf(unary_from_softmax(scores), guide, cfg.crf, sizes=sizes)
    return _to_labels(
        jnp.argmax(marginals, axis=-1).astype(jnp.int32), jnp.max(marginals, axis=-1), cfg
    )


# (state, images, image sizes, network sizes, network shapes) -> labels, winning scores
SegmentFn = Callable[[nnx.State, Array, Array, Array, tuple[tuple[int, int], ...]], tuple]


def make_segment_fn(
    task: Task, cfg: InferenceConfig, dtype: DTypeLike = jnp.int32
) -> tuple[nnx.State, SegmentFn]:
    """The model's state, and a function of batches to be jitted with its argument 4 static.

    The function takes state, images (b, h, w, 3) uint8, image_sizes (b, 2), network_sizes
    (b, ratios, 2) and network_shapes, one static (height, width) per ratio. It returns labels
    (b, h, w) of type `dtype` and the score (b, h, w) float32 of the winning class; see
    `label_maps`.
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
            views = [Scores(*scores)]
        else:
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
        if cfg.crf is not None:
            labels, best = crf_label_maps(views, images, image_sizes, cfg)
            return labels.astype(dtype), best
        return label_maps(views, cfg, dtype)

    return state, segment
