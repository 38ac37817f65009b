"""The last block of CLIP's ViT, with the attention of a read-out.

Spec readouts, sections 3 and 5; the values of `ReadOut` say which paper is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from clipseg_jax.models.clip.read_outs import ReadOut
from clipseg_jax.models.clip.vit import VisionTransformer
from clipseg_jax.ops.attention import split_heads


class LastBlock(NamedTuple):
    """Tokens after the last block and `ln_post`, and the block's projections, (b, t, d) each."""

    tokens: Array
    queries: Array
    keys: Array
    values: Array


class Feedback(NamedTuple):
    """What ResCLIP changes in the scores of a read-out: scale * scores + bias."""

    scale: float
    bias: Array  # (b, t, t)


def last_block(
    visual: VisionTransformer,
    x: Array,
    read_out: ReadOut,
    bias: Array | None = None,
    *,
    neighbours: Array | None = None,
    earlier: Sequence[tuple[Array, Array]] = (),
    feedback: Feedback | None = None,
) -> LastBlock:
    """Runs the last block of a ViT with a dense read-out.

    Args:
      x: tokens (b, t, d) before the block. Without `scores` in the read-out tokens do not interact,
        and a subset of them may be given.
      bias, neighbours, earlier, feedback: see `attend`.
    """
    block = visual.transformer.resblocks[-1]
    projections = block.attn.qkv(block.ln_1(x))
    mixed = attend(
        visual,
        projections,
        read_out,
        bias,
        neighbours=neighbours,
        earlier=earlier,
        feedback=feedback,
    )
    mixed = x + mixed if read_out.residual else mixed
    tokens = after_attention(visual, mixed) if read_out.mlp else visual.ln_post(mixed)
    return LastBlock(tokens, *projections)


def attend(
    visual: VisionTransformer,
    projections: tuple[Array, Array, Array],
    read_out: ReadOut,
    bias: Array | None = None,
    *,
    neighbours: Array | None = None,
    earlier: Sequence[tuple[Array, Array]] = (),
    feedback: Feedback | None = None,
    similarity: Array | None = None,
) -> Array:
    """The attention of the last block with its output projection, (b, t, d).

    Args:
      projections: queries, keys and values (b, t, d) each.
      bias: (1 or b, 1 or t, t), added to all scores; it masks padding.
      neighbours: (1, t, t), added to the scores as well: see `neighbour_map`.
      earlier: queries and keys (b, t, d) of the read-out's `cross_blocks`.
      feedback: changes the scores before `neighbours` are added.
      similarity: (b, t, t), one more attention map, of all heads, whose rows sum to 1.
    """
    attn = visual.transformer.resblocks[-1].attn
    q, k, v = projections
    pairs = {"qk": (q, k), "qq": (q, q), "kk": (k, k), "norm": (jnp.zeros_like(q), k)}
    mixtures = [] if similarity is None else [similarity.astype(v.dtype) @ v]
    for name in read_out.scores:
        queries, keys = pairs[name]
        added = neighbours
        if name == "norm" and added is not None:
            added = added * _mean_norm_product(q, k, attn.heads)
        if feedback is not None:
            queries, added = queries * feedback.scale, _sum(added, feedback.bias)
        mixtures.append(attn.gather(queries, keys, v, _sum(bias, added)))
    mixed = sum(mixtures[1:], mixtures[0]) / len(mixtures) if mixtures else v
    if earlier:
        # The values are the last block's, so the maps need not be stored, only computed again.
        ordinary = [attn.gather(q_i, k_i, v, bias) for q_i, k_i in earlier]
        mean = sum(ordinary[1:], ordinary[0]) / len(ordinary)
        mixed = (1 - read_out.cross) * mixed + read_out.cross * mean
    return attn.out_proj(mixed * read_out.gain)


def after_attention(visual: VisionTransformer, x: Array) -> Array:
    """Applies the last block's perceptron and `ln_post` to tokens (b, t, d) after its attention."""
    block = visual.transformer.resblocks[-1]
    return visual.ln_post(x + block.mlp(block.ln_2(x)))


def neighbour_map(grid: tuple[int, int], std: float) -> Array:
    """NACLIP's additive scores (1, 1 + hp*wp, 1 + hp*wp) of a grid (spec readouts, section 3).

    A Gaussian of the distance of two patches, 1 for a patch and itself; 0 for the class token.
    """
    rows, columns = (
        jnp.exp(-jnp.square(jnp.arange(n)[:, None] - jnp.arange(n)) / (2 * std**2)) for n in grid
    )
    count = grid[0] * grid[1]
    patches = (rows[:, None, :, None] * columns[None, :, None, :]).reshape(count, count)
    return jnp.pad(patches, ((1, 0), (1, 0)))[None]


def _mean_norm_product(q: Array, k: Array, heads: int) -> Array:
    """Mean (b, 1, 1) of |q_i| |k_j| / sqrt(channels) over heads and pairs of tokens."""
    q_norms, k_norms = (jnp.linalg.norm(split_heads(x, heads), axis=-1) for x in (q, k))
    product = jnp.mean(q_norms, axis=2) * jnp.mean(k_norms, axis=2)
    return jnp.mean(product, axis=1)[:, None, None] * (q.shape[-1] // heads) ** -0.5


def _sum(one: Array | None, two: Array | None) -> Array | None:
    """The sum of two score biases; None is none."""
    if one is None or two is None:
        return two if one is None else one
    return one + two
