"""Attention on TPUs in one kernel: scores and weights stay in the chip's own memory.

Written out, XLA moves scores of t x t through memory several times. The kernel reads tokens as the
projections write them, (b, t, n * d), so that heads are never split: a tile of 128 channels holds
128 / d heads, and a head's products mask the channels of the others. The matrix unit is 128 wide,
so with heads of 64 channels it is half used, masked or not. JAX's own flash attention takes
(b, n, t, d), of which each array is copied into tiles that are half empty (benchmarks/README.md).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128  # channels of a tile
# Scores of a block of queries, 2 MB in float32; the gradient holds three such arrays.
_SCORES = {"forward": 2**19, "gradient": 2**18}
_MOST_KEYS = 8192  # of which keys and values of a tile are held at once
_LEAST_QUERIES = 128
_MEMORY = 96 * 2**20  # bytes of the chip's own memory that the kernel may take

# keys and values (b, k, n * d), bias (1 or b, 1 or q, k) or None
Group = tuple[Array, Array, Array | None]


def fits(heads: int, queries: int, keys: int, channels: int, dtype: Any) -> bool:
    """Whether the kernel takes such an attention, and is worth it; of bfloat16 alone."""
    return (
        dtype == jnp.bfloat16
        and _LANES % channels == 0
        and (heads * channels) % _LANES == 0
        and queries >= _LEAST_QUERIES
        and keys <= _MOST_KEYS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def attend(q: Array, groups: Sequence[Group], channels: int, interpret: bool = False) -> Array:
    """softmax(q k^T / sqrt(channels)) v over the keys of all groups: (b, q, n * channels).

    Args:
      q: (b, q, n * channels), heads side by side.
      groups: see `Group`; biases are added to the scores of all heads, and get no gradient.
      channels: of a head.
      interpret: run by JAX's operations, to be tested where there is no TPU.
    """
    grid = _Grid("forward", q, groups)
    kernel = functools.partial(_forward, layout=grid.layout, d=channels)
    return grid.call(
        kernel,
        (q, *grid.arrays),
        (grid.of_queries, *grid.of_groups),
        grid.of_queries,
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        products=2,
        channels=channels,
        interpret=interpret,
    )


def _attend_and_keep(q: Array, groups: Sequence[Group], channels: int, interpret: bool) -> Any:
    # Scores are computed again for the gradient: nothing but the arguments is kept.
    return attend(q, groups, channels, interpret), (q, groups)


def _gradients(channels: int, interpret: bool, kept: Any, given: Array) -> Any:
    q, groups = kept
    grid = _Grid("gradient", q, groups)
    kernel = functools.partial(_backward, layout=grid.layout, d=channels, length=q.shape[1])
    pairs = [array for keys, values, _ in groups for array in (keys, values)]
    of_q, *of_pairs = grid.call(
        kernel,
        (q, given, *grid.arrays),
        (grid.of_queries, grid.of_queries, *grid.of_groups),
        (grid.of_queries, *(grid.whole(array) for array in pairs)),
        tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *pairs)),
        sums=[pltpu.VMEM((array.shape[1], _LANES), jnp.float32) for array in pairs],
        products=5,
        channels=channels,
        interpret=interpret,
    )
    remaining = iter(of_pairs)
    of_groups = [
        (next(remaining), next(remaining), None if bias is None else jnp.zeros_like(bias))
        for _, _, bias in groups
    ]
    return of_q, of_groups


attend.defvjp(_attend_and_keep, _gradients)


def attend_and_mean_map(
    q: Array, k: Array, v: Array, bias: Array | None, channels: int, interpret: bool = False
) -> tuple[Array, Array]:
    """`attend` with one group, and the maps averaged over heads (b, q, k) float32."""
    b, length, _ = q.shape
    grid = _Grid("gradient", q, [(k, v, bias)], tiles_last=True)
    kernel = functools.partial(_forward_with_map, layout=grid.layout, d=channels)
    of_map = pl.BlockSpec((1, grid.block, k.shape[1]), lambda i, m, j: (i, m, 0))
    return grid.call(
        kernel,
        (q, *grid.arrays),
        (grid.of_queries, *grid.of_groups),
        (grid.of_queries, of_map),
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, length, k.shape[1]), jnp.float32),
        ),
        products=2,
        channels=channels,
        interpret=interpret,
    )


def _forward_with_map(q_ref: Any, *refs: Any, layout: tuple[bool, ...], d: int) -> None:
    """As `_forward`; the tiles of a block of queries follow each other and add to its map."""
    *group_refs, out_ref, map_ref = refs
    q, held = q_ref[0] * d**-0.5, _held(group_refs, layout)
    ((_, values, _),) = held

    @pl.when(pl.program_id(2) == 0)
    def begin_map() -> None:
        map_ref[0] = jnp.zeros(map_ref.shape[1:], map_ref.dtype)

    heads = pl.num_programs(2) * (_LANES // d)
    out = jnp.zeros(q.shape, jnp.float32)
    for lanes in _heads(q.shape, d):
        (weights,), total = _weights(_masked(lanes, q), held)
        mixed = _product(weights.astype(values.dtype), values)
        out = jnp.where(lanes, mixed / total, out)
        map_ref[0] += weights / (total * heads)
    out_ref[0] = out.astype(out_ref.dtype)


def _forward(q_ref: Any, *refs: Any, layout: tuple[bool, ...], d: int) -> None:
    *group_refs, out_ref = refs
    q, held = q_ref[0] * d**-0.5, _held(group_refs, layout)
    out = jnp.zeros(q.shape, jnp.float32)
    for lanes in _heads(q.shape, d):
        weights, total = _weights(_masked(lanes, q), held)
        mixed = sum(
            _product(w.astype(v.dtype), v) for w, (_, v, _) in zip(weights, held, strict=True)
        )
        out = jnp.where(lanes, mixed / total, out)
    out_ref[0] = out.astype(out_ref.dtype)


def _backward(
    q_ref: Any, given_ref: Any, *refs: Any, layout: tuple[bool, ...], d: int, length: int
) -> None:
    """Gradients of a block of queries; those of keys and values are summed over the blocks."""
    count = sum(2 + has_bias for has_bias in layout)
    held, (of_q_ref, *pair_refs) = _held(refs[:count], layout), refs[count:]
    out_refs, sum_refs = pair_refs[: len(pair_refs) // 2], pair_refs[len(pair_refs) // 2 :]

    @pl.when(pl.program_id(2) == 0)
    def begin_sums() -> None:
        for ref in sum_refs:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    # What is read past the last query is anything, NaN too.
    def without_end(x: Array) -> Array:
        row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return _masked(row + pl.program_id(2) * q_ref.shape[1] < length, x)

    q, given = without_end(q_ref[0] * d**-0.5), without_end(given_ref[0])
    held = [
        (k, v, bias if bias is None or len(bias) == 1 else without_end(bias)) for k, v, bias in held
    ]
    of_q = jnp.zeros(q.shape, jnp.float32)
    for lanes in _heads(q.shape, d):
        own_q, own_given = _masked(lanes, q), _masked(lanes, given)
        weights, total = _weights(own_q, held)
        maps = [w / total for w in weights]
        of_maps = [_product(own_given, v, (1, 1)) for _, v, _ in held]
        means = sum(jnp.sum(m * g, -1, keepdims=True) for m, g in zip(maps, of_maps, strict=True))
        of_scores = [(m * (g - means)).astype(q.dtype) for m, g in zip(maps, of_maps, strict=True)]
        part = sum(_product(s, k) for s, (k, _, _) in zip(of_scores, held, strict=True))
        of_q = jnp.where(lanes, part, of_q)
        for i, (m, s) in enumerate(zip(maps, of_scores, strict=True)):
            sum_refs[2 * i][...] += _product(s, own_q, (0, 0))
            sum_refs[2 * i + 1][...] += _product(m.astype(q.dtype), own_given, (0, 0))
    of_q_ref[0] = (of_q * d**-0.5).astype(of_q_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def write_sums() -> None:
        for out_ref, ref in zip(out_refs, sum_refs, strict=True):
            out_ref[0] = ref[...].astype(out_ref.dtype)


def _weights(q: Array, held: Sequence[Any]) -> tuple[list[Array], Array]:
    """exp(scores - maximum) of each group, and their sum of each query."""
    scores = [
        _product(q, k, (1, 1)) if bias is None else _product(q, k, (1, 1)) + bias
        for k, _, bias in held
    ]
    maximum = functools.reduce(jnp.maximum, (jnp.max(s, -1, keepdims=True) for s in scores))
    weights = [jnp.exp(s - maximum) for s in scores]
    total = functools.reduce(jnp.add, (jnp.sum(w, -1, keepdims=True) for w in weights))
    return weights, total


def _product(a: Array, b: Array, axes: tuple[int, int] = (1, 0)) -> Array:
    """A float32 matrix product over an axis of each."""
    contracted = ((axes[0],), (axes[1],)), ((), ())
    return jax.lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)


def _masked(mask: Array, x: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros_like(x))


def _heads(shape: tuple[int, ...], d: int) -> Iterator[Array]:
    """For each head of a tile the mask of its channels."""
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    for first in range(0, _LANES, d):
        yield (lane >= first) & (lane < first + d)


def _held(refs: Sequence[Any], layout: tuple[bool, ...]) -> list[tuple[Any, Any, Any]]:
    """Keys, values and bias of each group."""
    remaining = iter(refs)
    return [
        (next(remaining)[0], next(remaining)[0], next(remaining)[0] if has_bias else None)
        for has_bias in layout
    ]


class _Grid:
    """The steps of a kernel, over images, tiles and blocks of queries, and what each reads."""

    def __init__(self, which: str, q: Array, groups: Sequence[Group], *, tiles_last: bool = False):
        """`tiles_last`: a block of queries goes through all tiles before the next one begins."""
        self._tiles_last = tiles_last
        self._q, self._keys = q.shape, sum(keys.shape[1] for keys, _, _ in groups)
        self.layout = tuple(bias is not None for _, _, bias in groups)
        length = q.shape[1]
        most = max(_SCORES[which] // self._keys // 16 * 16, 16)
        steps = pl.cdiv(length, most)  # equal ones, of whole tiles
        self.block = -(-length // steps // 16) * 16
        self.of_queries = self._spec(self.block, lambda i, j, m: (i, m, j))
        self.arrays: list[Array] = []
        self.of_groups: list[pl.BlockSpec] = []
        for keys, values, bias in groups:
            self.arrays += [keys, values]
            self.of_groups += [self.whole(keys), self.whole(values)]
            if bias is not None:
                self.arrays.append(bias)
                self.of_groups.append(self._of_bias(bias.shape))

    def _of_bias(self, shape: tuple[int, ...]) -> pl.BlockSpec:
        by_image, by_query = shape[0] > 1, shape[1] > 1

        def index(i: Any, j: Any, m: Any) -> tuple:
            return (i if by_image else 0, m if by_query else 0, 0)

        return self._spec(self.block if by_query else 1, index, shape[2])

    def whole(self, array: Array) -> pl.BlockSpec:
        """All keys (or values) of an image, the channels of a tile."""
        return self._spec(array.shape[1], lambda i, j, m: (i, 0, j))

    def _spec(self, rows: int, index: Any, columns: int = _LANES) -> pl.BlockSpec:
        """A block of `index`(image, tile, block of queries), whatever the order of the steps."""
        if self._tiles_last:
            return pl.BlockSpec((1, rows, columns), lambda i, m, j: index(i, j, m))
        return pl.BlockSpec((1, rows, columns), index)

    def call(
        self,
        kernel: Any,
        arrays: Sequence[Array],
        in_specs: Sequence[pl.BlockSpec],
        out_specs: Any,
        out_shape: Any,
        *,
        products: int,
        channels: int,
        interpret: bool,
        sums: Sequence[Any] = (),
    ) -> Any:
        """Runs the kernel; `products` is how many of them it makes of each block of scores.

        `sums` are arrays of the chip's own memory that last from one block of queries to the next.
        """
        b, length, width = self._q
        scores = b * (width // channels) * length * self._keys
        moved = (*arrays, *jax.tree.leaves(out_shape))
        steps = [width // _LANES, pl.cdiv(length, self.block)]
        return pl.pallas_call(
            kernel,
            grid=(b, *(reversed(steps) if self._tiles_last else steps)),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            scratch_shapes=sums,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=_MEMORY,
            ),
            cost_estimate=pl.CostEstimate(
                # As the matrix unit makes them: all channels of a tile for each head.
                flops=2 * products * scores * _LANES,
                transcendentals=products * scores,  # an instruction of the vector unit each
                bytes_accessed=sum(each.size * each.dtype.itemsize for each in moved),
            ),
            interpret=interpret,
        )(*arrays)
