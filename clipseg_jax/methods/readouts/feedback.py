"""ResCLIP's semantic feedback: a first segmentation says which patches attend to each other.

Source: Yang et al., "ResCLIP: Residual Attention for Training-free Dense Vision-language
Inference", 2025; spec readouts, section 5. It costs a second last block, p x p paths on the grid of
p patches and, for the most part, PAMR of all text rows at the size of each window: 1.2 times the
time of the pass without it with 21 rows, 2.3 times with 171 (ViT-B/16, windows of 224 px, CPU).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.core.checks import check_number
from clipseg_jax.models.clip import VisionTransformer
from clipseg_jax.models.clip.last_block import Feedback
from clipseg_jax.ops.image import valid_mask
from clipseg_jax.ops.pamr import NACLIP, PAMRConfig, pamr
from clipseg_jax.ops.resize import resize_within

_SMOOTHING = 5.0  # standard deviation in patches of the Gaussian along the rows of the feedback
_LONGEST_KERNEL = 31


@dataclasses.dataclass(frozen=True)
class FeedbackConfig:
    """Constants of the feedback; the published table has others for each dataset."""

    threshold: float = 0.25  # temporary labels of lower probability become row 0
    gain: float = 1.8  # factor of all scores of the second pass
    share: float = 0.7  # of the feedback in these scores
    temperature: float = 40.0  # factor of cosines before the softmax of the temporary labels
    pamr: PAMRConfig = NACLIP

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0, 1)
        check_number("gain", self.gain, 0, above=True)
        check_number("share", self.share, 0, 1)
        check_number("temperature", self.temperature, 0, above=True)


def feedback_of(
    cosines: Array,
    images: Array,
    sizes: Array | None,
    visual: VisionTransformer,
    cfg: FeedbackConfig,
) -> Feedback:
    """The feedback from cosines (b, hp, wp, c) of normalised images (b, h, w, 3).

    `sizes` (b, 2): real pixels of images in a padded batch; None: no image is padded.
    """
    grid = (cosines.shape[1], cosines.shape[2])
    probabilities = temporary_probabilities(cosines, images, sizes, visual, cfg)
    classes = patch_classes(probabilities, cfg.threshold, visual.cfg.patch_px, grid)
    matrix = feedback_matrix(classes, visual.grid_sizes(_real_sizes(images, sizes)))
    matrix = matrix / jnp.max(matrix, axis=(1, 2), keepdims=True)
    matrix = jnp.pad(matrix, ((0, 0), (1, 0), (1, 0)))
    return Feedback(cfg.gain * (1 - cfg.share), cfg.gain * cfg.share * matrix)


def _real_sizes(images: Array, sizes: Array | None) -> Array:
    if sizes is not None:
        return sizes
    return jnp.broadcast_to(jnp.asarray(images.shape[1:3], jnp.int32), (len(images), 2))


def temporary_probabilities(
    cosines: Array,
    images: Array,
    sizes: Array | None,
    visual: VisionTransformer,
    cfg: FeedbackConfig,
) -> Array:
    """Probabilities (b, h, w, c) of the text rows for the pixels of images, after PAMR.

    Arguments are those of `feedback_of`.
    """
    extents = _real_sizes(images, sizes)
    shape = (images.shape[1], images.shape[2])
    maps = resize_within(cosines, visual.grid_sizes(extents), extents, shape)
    maps = pamr(images, jnp.moveaxis(maps, 3, 1), cfg.pamr, sizes)
    return jax.nn.softmax(cfg.temperature * jnp.moveaxis(maps, 1, 3), axis=-1)


def patch_classes(
    probabilities: Array, threshold: float, patch_px: int, grid: tuple[int, int]
) -> Array:
    """The most frequent text row (b, hp, wp) int32 of each patch's pixels, the smallest of equals.

    Pixels of probabilities (b, h, w, c) below the threshold count for row 0; pixels beyond the last
    whole patch do not count.
    """
    b, h, w, c = probabilities.shape
    labels = jnp.argmax(probabilities, axis=-1)
    labels = jnp.where(jnp.max(probabilities, axis=-1) < threshold, 0, labels)
    height, width = grid[0] * patch_px, grid[1] * patch_px
    labels = jnp.pad(labels, ((0, 0), (0, max(height - h, 0)), (0, max(width - w, 0))))
    labels = labels[:, :height, :width].reshape(b, grid[0], patch_px, grid[1], patch_px)
    counts = jnp.sum(jax.nn.one_hot(labels, c, dtype=jnp.int32), axis=(2, 4))
    return jnp.argmax(counts, axis=-1).astype(jnp.int32)


def feedback_matrix(classes: Array, grids: Array) -> Array:
    """How much patches attend to each other by their classes (b, hp, wp): (b, p, p), rows sum to 1.

    Patches of one class attend to each other, less if the straight line between them leaves the
    class; each row is smoothed along the flattened index of its patch. `grids` (b, 2): real rows
    and columns; zero in the padding.
    """
    shape = (classes.shape[1], classes.shape[2])
    row_paths, column_paths = (jnp.asarray(_paths(side, max(shape))) for side in shape)
    rows, columns = (
        jnp.abs(jnp.arange(side)[:, None] - jnp.arange(side)[None, :]) for side in shape
    )
    distances = jnp.maximum(rows[:, None, :, None], columns[None, :, None, :])
    count = shape[0] * shape[1]

    def one(classes: Array, grid: Array) -> Array:
        longest = jnp.maximum(jnp.max(grid) - 1, 0)
        flat = classes.reshape(-1)

        def step(connected: Array, k: Array) -> tuple[Array, None]:
            y, x = row_paths[longest, k], column_paths[longest, k]
            index = y[:, None, :, None].astype(jnp.int32) * shape[1] + x[None, :, None, :]
            same = flat[index] == classes[:, :, None, None]
            return connected & (same | (k > distances)), None

        start = jnp.ones((*shape, *shape), bool)
        connected, _ = jax.lax.scan(step, start, jnp.arange(max(shape)))
        decay = jnp.exp(-distances / jnp.maximum(longest, 1))
        same = classes[:, :, None, None] == classes[None, None]
        matrix = jnp.where(same, jnp.where(connected, 1.0, decay), 0.0).reshape(count, count)
        real = valid_mask(grid[None], shape).reshape(count)
        # Real patches first: the index along which rows are smoothed is that of the image's grid.
        order = jnp.argsort(~real)
        back = jnp.argsort(order)
        matrix = jnp.where(real[:, None] & real, matrix, 0)
        matrix = matrix[:, order] @ _smoothing(jnp.sum(real), count)
        matrix = jnp.where(real[:, None], matrix[:, back], 0)
        return matrix / (jnp.sum(matrix, axis=1, keepdims=True) + 1e-8)

    return jax.vmap(one)(classes, grids)


@functools.cache
def _paths(side: int, longest: int) -> np.ndarray:
    """Coordinates (longest, longest, side, side) on the lines between coordinates of an axis.

    Entry [d, k, i, j] is round(i (1 - t) + j t) at t = k / d. As published in float32, in which
    products are rounded before they are added; compilers may not do so, hence the table. It grows
    with the fourth power: 0.04 MB for a window of 14 patches, 12 MB for a side of 60.
    """
    table = np.empty((longest, longest, side, side), np.int8 if side <= 128 else np.int16)
    i, j = np.arange(side, dtype=np.float32)[:, None], np.arange(side, dtype=np.float32)
    for d in range(longest):
        t = np.minimum(np.arange(longest) / max(d, 1), 1).astype(np.float32)[:, None, None]
        table[d] = np.rint(i * (np.float32(1) - t) + j * t)  # halves to even
    return table


def _smoothing(patches: Array, count: int) -> Array:
    """Matrix (count, count) that smooths rows of the first `patches` entries, a traced number."""
    length = jnp.minimum(patches, _LONGEST_KERNEL)
    half = (length + 1 - length % 2) // 2
    x = jnp.arange(count)[:, None] - jnp.arange(count)[None, :]
    offsets = jnp.arange(-_LONGEST_KERNEL, _LONGEST_KERNEL + 1)

    def kernel(x: Array) -> Array:
        return jnp.where(jnp.abs(x) <= half, jnp.exp(-jnp.square(x) / (2 * _SMOOTHING**2)), 0)

    inside = (jnp.arange(count) < patches)[None, :]
    return jnp.where(inside, kernel(x), 0) / jnp.sum(kernel(offsets))
