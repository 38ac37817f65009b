"""Softmax attention of all networks, in bounded memory.

`attention` does not store attention maps, neither for the result nor for gradients, which recompute
them. On CPUs it computes few heads at a time, such that the maps stay in the caches: writing and
reading maps of b * n * t * t numbers would take longer than all matrix products.

Axes: b batch, n heads, q queries, k keys, d and e channels of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.core.mesh import by_rows, takes_kernels
from clipseg_jax.ops import attention_tpu
from clipseg_jax.ops.dropout import keep, kept

MASKED = -1e30  # a bias that hides a key: exp() gives exactly 0, and no NaN where all are hidden
_SCORES_AT_ONCE = 2**20  # scores that a CPU computes at once: 4 MB, about the size of its caches


class KeyValues(NamedTuple):
    """A group of keys with their values and one bias.

    Keys with different masks form different groups, so that a (q, k) mask is only stored for those
    keys that need it.
    """

    keys: Array  # (b, n, k, d), or (1, n, k, d): shared by the batch
    values: Array  # (b, n, k, e), or (1, n, k, e)
    # (1 or b, 1 or q, k), added to the scores of all heads; -inf masks a key. None: no mask. It is
    # a constant: no gradient flows to it.
    bias: Array | None = None


def attention(
    queries: Array,
    groups: Sequence[KeyValues],
    *,
    rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(q k^T / sqrt(d)) v over the keys of all groups together: (b, n, q, e).

    Args:
      queries: (b, n, q, d); for each at least one key must not be masked.
      groups: keys and values.
      rate: dropout rate of the attention maps.
      key: random key of the dropout; None: no dropout.

    Raises:
      ValueError: a bias does not have three axes.
    """
    for group in groups:
        if group.bias is not None and group.bias.ndim != 3:
            raise ValueError(
                f"attention bias of shape {group.bias.shape}; its shape must be (1 or b, 1 or q, k)"
            )
    b, n, length, d = queries.shape
    count = sum(group.keys.shape[2] for group in groups)
    biases = [None if group.bias is None else jax.lax.stop_gradient(group.bias) for group in groups]
    shared = [len(group.keys) < b for group in groups]

    drops = key is not None and rate > 0

    def stays(index: Array) -> list[Array]:
        """Which weights (q, k) of each group the dropout leaves; `index` = image * n + head."""
        assert key is not None
        head_keys = jax.random.split(jax.random.fold_in(key, index), len(groups))
        shapes = [(length, group.keys.shape[2]) for group in groups]
        return [kept(shape, rate, k) for shape, k in zip(shapes, head_keys, strict=True)]

    @jax.checkpoint
    def head(
        index: Array, left: list[Array] | None, q: Array, *pairs: tuple[Array, Array]
    ) -> Array:
        """Output (q, e) of one head of one image; `left`: its `stays`, None: drawn here."""
        scores = [jnp.matmul(q, k.T, preferred_element_type=jnp.float32) for k, _ in pairs]
        image = index // n
        scores = [
            s if bias is None else s + bias[image if len(bias) > 1 else 0]
            for s, bias in zip(scores, biases, strict=True)
        ]
        maxima = [jnp.max(s, axis=-1, keepdims=True) for s in scores]
        maximum = jax.lax.stop_gradient(functools.reduce(jnp.maximum, maxima))
        weights = [jnp.exp(s - maximum) for s in scores]
        total = functools.reduce(jnp.add, [jnp.sum(w, -1, keepdims=True) for w in weights])
        if drops:
            left = stays(index) if left is None else left
            weights = [keep(w, rate, stay) for w, stay in zip(weights, left, strict=True)]
        values = [v for _, v in pairs]
        mixed = [w.astype(v.dtype) @ v for w, v in zip(weights, values, strict=True)]
        # Normalise the output (q * e numbers) instead of the weights (q * k).
        return (functools.reduce(jnp.add, mixed) / total).astype(queries.dtype)

    def all_at_once(index: Array, q: Array, *pairs: tuple[Array, Array]) -> Array:
        pairs = tuple(
            jax.tree.map(lambda x: x[0], pair) if is_shared else pair
            for pair, is_shared in zip(pairs, shared, strict=True)
        )
        axes = (0, 0, 0, *(None if is_shared else 0 for is_shared in shared))
        # Drawn once and kept for the gradient, a byte a weight: random bits cost an accelerator
        # more than the products.
        left = jax.vmap(jax.vmap(stays))(index) if drops else None
        return jax.vmap(jax.vmap(head), in_axes=axes)(index, left, q, *pairs)

    def in_batches(index: Array, q: Array, *pairs: tuple[Array, Array]) -> Array:
        def flat(x: Array) -> Array:
            return x.reshape(b * n, *x.shape[2:])

        def one_head(args: Any) -> Array:
            index, q, *unshared = args
            remaining = iter(unshared)
            head_pairs = [
                jax.tree.map(lambda x: x[0, index % n], pair) if is_shared else next(remaining)
                for pair, is_shared in zip(pairs, shared, strict=True)
            ]
            return head(index, None, q, *head_pairs)

        unshared = [pair for pair, is_shared in zip(pairs, shared, strict=True) if not is_shared]
        mixed = jax.lax.map(
            one_head,
            jax.tree.map(flat, (index, q, *unshared)),
            batch_size=max(_SCORES_AT_ONCE // (length * count), 1),
        )
        return mixed.reshape(b, n, *mixed.shape[1:])

    def by_kernel(index: Array, q: Array, *pairs: tuple[Array, Array]) -> Array:
        del index, q
        rows = [(k, v, bias) for (k, v), bias in zip(pairs, biases, strict=True)]
        return by_rows(lambda rows: _in_one_kernel(*rows), (queries, rows))

    index = jnp.arange(b * n).reshape(b, n)
    arrays = (index, queries * d**-0.5, *((group.keys, group.values) for group in groups))
    if b * n * length * count <= _SCORES_AT_ONCE:
        return all_at_once(*arrays)
    forms: dict[str, Any] = {"cpu": in_batches}
    if not drops and _fits_kernel(queries, groups):
        forms["tpu"] = by_kernel
    return jax.lax.platform_dependent(*arrays, **forms, default=all_at_once)


def _fits_kernel(queries: Array, groups: Sequence[KeyValues]) -> bool:
    """Whether TPUs take the kernel: of one type and width, with keys of each image's own."""
    b, n, length, d = queries.shape
    arrays = [queries, *(x for group in groups for x in (group.keys, group.values))]
    count = sum(group.keys.shape[2] for group in groups)
    return (
        takes_kernels()
        and len({x.dtype for x in arrays}) == 1
        and all(len(x) == b and x.shape[3] == d for x in arrays)
        and attention_tpu.fits(n, length, count, d, queries.dtype)
    )


def _in_one_kernel(queries: Array, groups: Sequence[tuple[Array, Array, Array | None]]) -> Array:
    """`attention` (b, n, q, d) by the TPU's kernel, which takes heads side by side."""
    rows = [(join_heads(k), join_heads(v), bias) for k, v, bias in groups]
    mixed = attention_tpu.attend(join_heads(queries), rows, queries.shape[3])
    return split_heads(mixed, queries.shape[1])


def attention_maps(queries: Array, keys: Array, bias: Array | None = None) -> Array:
    """Attention maps (b, n, q, k) float32 of queries (b, n, q, d) and keys (b, n, k, d).

    `bias` (1 or b, 1 or q, k) is added to the scores of all heads.
    """
    scores = jnp.einsum(
        "bnqd,bnkd->bnqk",
        queries * queries.shape[-1] ** -0.5,
        keys,
        preferred_element_type=jnp.float32,
    )
    return jax.nn.softmax(scores if bias is None else scores + bias[:, None], axis=-1)


def attention_and_mean_map(
    queries: Array, keys: Array, values: Array, bias: Array | None = None
) -> tuple[Array, Array]:
    """`attention` (b, n, q, e), and its maps averaged over heads (b, q, k) float32.

    Heads are computed one after another, so that the maps of one head are in memory at a time. The
    mean is a constant: no gradient flows through it.
    """
    _, n, _, d = queries.shape
    arrays = {"q": queries, "k": keys, "v": values}
    if bias is not None:
        arrays["bias"] = jax.lax.stop_gradient(bias)
    if not _fits_kernel(queries, [KeyValues(keys, values, bias)]):
        return _head_by_head(arrays)

    def by_kernel(arrays: dict[str, Array]) -> tuple[Array, Array]:
        # Joined out here, so that many gradients, as those of all classes, join them once.
        joined = {name: x if name == "bias" else join_heads(x) for name, x in arrays.items()}
        mixed, mean = _mixed_and_mean_map(joined, d)
        return split_heads(mixed, n), mean

    return jax.lax.platform_dependent(arrays, tpu=by_kernel, default=_head_by_head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _mixed_and_mean_map(rows: dict[str, Array], d: int) -> tuple[Array, Array]:
    """`attention_and_mean_map` by the TPU's kernel of tokens (b, t, n * d), and of a bias."""
    return by_rows(
        lambda rows: attention_tpu.attend_and_mean_map(
            rows["q"], rows["k"], rows["v"], rows.get("bias"), d
        ),
        rows,
    )


def _gradient_without_map(
    d: int, rows: dict[str, Array], given: tuple[Array, Array]
) -> tuple[dict[str, Array]]:
    def mixed(rows: dict[str, Array]) -> Array:
        return attention_tpu.attend(rows["q"], [(rows["k"], rows["v"], rows.get("bias"))], d)

    return jax.vjp(functools.partial(by_rows, mixed), rows)[1](given[0])


_mixed_and_mean_map.defvjp(
    lambda rows, d: (_mixed_and_mean_map(rows, d), rows), _gradient_without_map
)


def _head_by_head(arrays: dict[str, Array]) -> tuple[Array, Array]:
    """`attention_and_mean_map` of `q`, `k`, `v` and perhaps `bias`."""
    queries, keys, values = (arrays[name] for name in "qkv")
    bias = arrays.get("bias")
    b, n, length, d = queries.shape

    def add_head(total: Array, head: list[Array]) -> tuple[Array, Array]:
        q, k, v = head  # (b, t, channels) each
        scores = jnp.einsum("bqd,bkd->bqk", q * d**-0.5, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
        return total + weights, jnp.einsum("bqk,bkd->bqd", weights.astype(v.dtype), v)

    heads = [jnp.moveaxis(x, 1, 0) for x in (queries, keys, values)]
    zeros = jnp.zeros((b, length, keys.shape[2]), jnp.float32)
    total, mixed = jax.lax.scan(add_head, zeros, heads)
    return jnp.moveaxis(mixed, 0, 1), jax.lax.stop_gradient(total / n)


def split_heads(x: Array, heads: int) -> Array:
    """(b, t, d) -> (b, n, t, d / n), heads in contiguous channel groups."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join_heads(x: Array) -> Array:
    """(b, n, t, d) -> (b, t, n * d)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
