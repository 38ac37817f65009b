"""Softmax attention over groups of keys, whose maps are never kept.

Keys come in groups because what hides them differs: a mask that only a few keys need costs as much
as those few. Maps are made again for gradients. On CPUs they exist for one head of one image at a
time, so that they stay in the caches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.dropout import dropout

_SCORES_AT_ONCE = 2**20  # made together on CPUs; with more it goes head by head


class KeyValues(NamedTuple):
    """A group of keys, and the values behind them."""

    keys: Array  # (b, n, k, d)
    values: Array  # (b, n, k, e)
    # (1 or b, 1 or q, k), added to the scores of all heads; -inf hides a key. None: all are seen.
    bias: Array | None = None


def attention(
    queries: Array,
    groups: Sequence[KeyValues],
    *,
    rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(q k^T / sqrt(d)) v over the keys of all groups together, (b, n, q, e).

    Args:
      queries: (b, n, q, d) of n heads; each must see at least one key.
      rate: of dropout on the maps, with a `key`.
    """
    b, n, length, d = queries.shape
    biases = [group.bias for group in groups]

    @jax.checkpoint
    def head(index: Array, q: Array, *pairs: tuple[Array, Array]) -> Array:
        """(q, e) of one head of one image; `index` counts through all of them."""
        scores = [jnp.matmul(q, k.T, preferred_element_type=jnp.float32) for k, _ in pairs]
        image = index // n
        scores = [
            s if bias is None else s + bias[image if len(bias) > 1 else 0]
            for s, bias in zip(scores, biases, strict=True)
        ]
        tops = [jnp.max(s, axis=-1, keepdims=True) for s in scores]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
        weights = [jnp.exp(s - top) for s in scores]
        total = functools.reduce(jnp.add, [jnp.sum(w, -1, keepdims=True) for w in weights])
        if key is not None:
            own = jax.random.split(jax.random.fold_in(key, index), len(weights))
            weights = [dropout(w, rate, one) for w, one in zip(weights, own, strict=True)]
        values = [v for _, v in pairs]
        mixed = [w.astype(v.dtype) @ v for w, v in zip(weights, values, strict=True)]
        # Dividing q * e numbers instead of q * k.
        return (functools.reduce(jnp.add, mixed) / total).astype(queries.dtype)

    def together(*arrays: Array | tuple[Array, Array]) -> Array:
        return jax.vmap(jax.vmap(head))(*arrays)

    def in_turn(*arrays: Array | tuple[Array, Array]) -> Array:
        flat = jax.tree.map(lambda x: x.reshape(b * n, *x.shape[2:]), arrays)
        mixed = jax.lax.map(lambda one: head(*one), flat)
        return mixed.reshape(b, n, *mixed.shape[1:])

    index = jnp.arange(b * n).reshape(b, n)
    arrays = (index, queries * d**-0.5, *((group.keys, group.values) for group in groups))
    if b * n * length * sum(group.keys.shape[2] for group in groups) <= _SCORES_AT_ONCE:
        return together(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=in_turn, default=together)


def split_heads(x: Array, heads: int) -> Array:
    """(b, t, d) -> (b, n, t, d / n), heads in contiguous channel groups."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join_heads(x: Array) -> Array:
    """(b, n, t, d) -> (b, t, n * d)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
