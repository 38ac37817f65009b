"""SC-CLIP: outlier patches are replaced, and patches that are alike in earlier blocks are averaged.

Source: Bai et al., "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation", 2025;
spec readouts, section 4. All statistics are of one image; padding takes no part in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.models.clip.clip import l2_normalize
from clipseg_jax.models.clip.last_block import attend
from clipseg_jax.models.clip.read_outs import ReadOut, block_index
from clipseg_jax.models.clip.vit import VisionTransformer
from clipseg_jax.ops.attention import MASKED

_SMALLEST = 1e-20  # a squared distance whose inverse can be summed


def calibrated_tokens(
    visual: VisionTransformer,
    x: Array,
    real: Array,
    parts: Mapping[str, Array],
    read_out: ReadOut,
) -> Array:
    """SC-CLIP's patch tokens (b, hp*wp, d) after `ln_post`.

    Args:
      x: tokens (b, 1 + hp*wp, d) before the last block.
      real: (b, hp, wp) bool, False in the padding.
      parts: outputs "block{i}" (b, 1 + hp*wp, d) of earlier blocks.
      read_out: with a calibration; the softmax of its scores and that of the patches' similarity
        have equal weight.
    """
    cfg, layers = read_out.calibration, visual.cfg.layers
    assert cfg is not None
    block = visual.transformer.resblocks[-1]
    among_real = real.reshape(len(real), 1, -1)
    # Each patch attends to itself at least: in the padding, and where all are equal to rounding.
    itself = jnp.eye(among_real.shape[-1], dtype=bool)
    seen = among_real | itself
    bias = jnp.where(seen, 0.0, MASKED)

    def output(number: int) -> Array:
        return parts[f"block{block_index(number, layers)}"].astype(jnp.float32)

    def similarity_of(patches: Array) -> Array:
        unit = l2_normalize(patches)
        return jnp.where(seen, unit @ unit.mT, -jnp.inf)

    def attention(tokens: Array) -> Array:
        projections = block.attn.qkv(block.ln_1(tokens[:, 1:]))
        mixed = attend(visual, projections, read_out, bias, similarity=shared)
        return mixed.astype(jnp.float32) + cfg.class_share * tokens[:, :1]

    x = x.astype(jnp.float32)
    scores = outlier_scores(x[:, 1:], real, cfg.neighbours)
    outlier = outliers(scores, real, cfg.outliers)

    similarity = similarity_of(fill_outliers(output(cfg.similarity)[:, 1:], outlier, real))
    pairs = among_real & among_real.mT
    mean = jnp.mean(similarity, axis=(1, 2), keepdims=True, where=pairs)
    above = jnp.where((similarity >= mean) | itself, cfg.sharpen * (similarity - mean), -jnp.inf)
    shared = jax.nn.softmax(above, axis=-1)
    patches = fill_outliers(x[:, 1:], outlier, real)
    patches = aggregate(patches, similarity, cfg.threshold)
    first = attention(jnp.concatenate([x[:, :1], patches], axis=1))

    early = similarity_of(output(cfg.aggregate)[:, 1:])
    fused = [parts[f"block{i}"].astype(jnp.float32) for i in cfg.fused_indices(layers)]
    second = attention(sum(fused[1:], fused[0]))
    # Averaging is linear, so both passes are averaged at once.
    return visual.ln_post(aggregate(first + second, early, cfg.threshold))


def outlier_scores(patches: Array, real: Array, neighbours: int) -> Array:
    """Local outlier factors (b, n) of patches (b, n, d); infinite in the padding.

    The squared distance to the last of a patch's nearest neighbours, relative to the same of these
    neighbours. Images with too few patches for that many neighbours have no outliers: all are 1.
    """
    count = patches.shape[1]
    squares = jnp.sum(jnp.square(patches), axis=-1)
    products = jnp.matmul(patches, patches.mT, precision="highest")
    distances = squares[:, :, None] + squares[:, None, :] - 2 * products
    real = real.reshape(len(real), 1, count)
    others = real & ~jnp.eye(count, dtype=bool)
    distances = jnp.where(others, jnp.maximum(distances, 0), jnp.inf)
    nearest = -jax.lax.top_k(-distances, min(neighbours, count))[0]
    farthest = jnp.max(nearest, axis=-1, where=jnp.isfinite(nearest), initial=0)
    # Patches that are equal, as in an image of one colour, are no outliers.
    farthest = jnp.maximum(farthest, _SMALLEST)
    near = others & (distances <= farthest[:, :, None])
    inverse = jnp.mean(jnp.broadcast_to(1 / farthest[:, None, :], near.shape), axis=-1, where=near)
    enough = jnp.sum(real, axis=-1) > neighbours
    factor = jnp.where(enough & jnp.any(near, axis=-1), farthest * inverse, 1.0)
    return jnp.where(real[:, 0], factor, jnp.inf)


def outliers(scores: Array, real: Array, share: float) -> Array:
    """The `share` of patches with the highest scores (b, n) of each image, bool (b, n)."""
    real = real.reshape(scores.shape)
    position = (1 - share) * (jnp.sum(real, axis=1) - 1)
    low = jnp.floor(position).astype(jnp.int32)
    ordered = jnp.sort(scores, axis=1)
    last = jnp.sum(real, axis=1).astype(jnp.int32) - 1
    below, above = (
        jnp.take_along_axis(ordered, jnp.clip(index, 0, last)[:, None], axis=1)
        for index in (low, low + 1)
    )
    quantile = below + (position - low)[:, None] * (above - below)
    return real & (scores > quantile)


def fill_outliers(patches: Array, outlier: Array, real: Array) -> Array:
    """Patches (b, hp*wp, d) with each outlier replaced by the mean of its sound neighbours.

    Neighbours are up to eight on the grid of `real` (b, hp, wp); without a sound one a patch stays.
    """
    sound = (real & ~outlier.reshape(real.shape)).astype(jnp.float32)[..., None]
    grid = patches.reshape(*real.shape, -1)
    total, count = _sum_3x3(grid * sound), _sum_3x3(sound)
    replaced = outlier.reshape(real.shape)[..., None] & (count > 0)
    return jnp.where(replaced, total / jnp.maximum(count, 1), grid).reshape(patches.shape)


def _sum_3x3(x: Array) -> Array:
    """Sums over the 3x3 windows of (b, h, w, c), with zeros beyond the border."""
    for axis in (1, 2):
        before, after = ([(0, 0)] * 4 for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        length = x.shape[axis]
        up = jax.lax.slice_in_dim(jnp.pad(x, after), 1, length + 1, axis=axis)
        down = jax.lax.slice_in_dim(jnp.pad(x, before), 0, length, axis=axis)
        x = x + up + down
    return x


def aggregate(patches: Array, similarity: Array, threshold: float) -> Array:
    """Averages patches (b, n, d) over those of a similarity (b, n, n) of at least `threshold`."""
    weights = jnp.where(similarity >= threshold, similarity, 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return (weights @ patches) / (total + 1e-6)
