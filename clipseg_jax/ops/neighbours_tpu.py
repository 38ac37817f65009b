"""`neighbours.diffuse` on TPUs in one kernel: all iterations in the chip's own memory.

XLA reads every neighbour as a slice that starts anywhere in a tile, and writes it out. The kernel
shifts the columns of all masks once for each of the few column distances; a row distance is then a
matter of where a load begins.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES, _ROWS = 128, 8  # of a tile
_MEMORY = 96 * 2**20  # bytes of the chip's own memory that the kernel may take

Offsets = tuple[tuple[int, int], ...]  # (row, column) of each neighbour, in pixels


def fits(shape: tuple[int, int, int, int], offsets: Offsets) -> bool:
    """Whether masks of `shape` (b, h, k, w) and their weights find room in the chip's memory."""
    _, h, k, w = shape
    frame = _Frame(h, w, offsets)
    planes = 2 * len(offsets) * h + (len(frame.columns) + 1) * k * frame.height + 4 * k * h
    return 4 * planes * frame.width <= _MEMORY


class _Frame:
    """Where an image (h, w) lies among its repeated border, in whole tiles."""

    def __init__(self, h: int, w: int, offsets: Offsets):
        self.columns = sorted({x for _, x in offsets})
        self.top = -(-max(abs(y) for y, _ in offsets) // _ROWS) * _ROWS
        self.left = max(abs(x) for x in self.columns)
        self.rows = -(-h // _ROWS) * _ROWS
        self.height = self.rows + 2 * self.top
        self.width = -(-(w + 2 * self.left) // _LANES) * _LANES


def diffuse(
    weights: Array,
    masks: Array,
    offsets: Offsets,
    iterations: int,
    sizes: Array,
    *,
    interpret: bool = False,
) -> Array:
    """`neighbours.diffuse` of weights (b, h, n, w) and masks (b, h, k, w), float32.

    `sizes` (b, 2): rows and columns of each image, beyond which its border is repeated.
    """
    b, h, k, w = masks.shape
    frame = _Frame(h, w, offsets)
    margin = (frame.left, frame.width - w - frame.left)
    below = (0, frame.rows - h)
    laid = jnp.pad(jnp.moveaxis(masks, 2, 1), ((0, 0), (0, 0), below, margin))
    by_neighbour = jnp.pad(jnp.moveaxis(weights, 2, 1), ((0, 0), (0, 0), below, margin))
    shape = (k, frame.rows, frame.width)
    out = pl.pallas_call(
        functools.partial(_kernel, frame=frame, offsets=offsets, iterations=iterations),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b,),
            in_specs=[
                pl.BlockSpec((1, len(offsets), *shape[1:]), lambda i, sizes: (i, 0, 0, 0)),
                pl.BlockSpec((1, *shape), lambda i, sizes: (i, 0, 0, 0)),
            ],
            out_specs=pl.BlockSpec((1, *shape), lambda i, sizes: (i, 0, 0, 0)),
            scratch_shapes=[
                pltpu.VMEM((k, frame.height, frame.width), jnp.float32),
                pltpu.VMEM((len(frame.columns), k, frame.height, frame.width), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((b, *shape), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=_MEMORY
        ),
        # One instruction for each weight and mask, three for each number that is shifted.
        cost_estimate=pl.CostEstimate(
            flops=0,
            transcendentals=b
            * iterations
            * k
            * frame.width
            * (len(offsets) * frame.rows + 3 * len(frame.columns) * frame.height),
            bytes_accessed=4 * (by_neighbour.size + 2 * laid.size),
        ),
        interpret=interpret,
    )(sizes.astype(jnp.int32), by_neighbour, laid)
    return jnp.moveaxis(out[:, :, :h, frame.left : frame.left + w], 1, 2)


def _kernel(
    sizes: Any,
    weights_ref: Any,
    masks_ref: Any,
    out_ref: Any,
    wide: Any,
    shifted: Any,
    *,
    frame: _Frame,
    offsets: Offsets,
    iterations: int,
) -> None:
    k = masks_ref.shape[1]
    image = pl.program_id(0)
    inside = slice(frame.top, frame.top + frame.rows)
    wide[...] = jnp.zeros(wide.shape, jnp.float32)
    wide[:, inside] = masks_ref[0]

    def once(_: Any, carry: Any) -> Any:
        _repeat_border(wide, frame, sizes[image, 0], sizes[image, 1])
        for i, x in enumerate(frame.columns):
            for mask in range(k):
                shifted[i, mask] = pltpu.roll(wide[mask], -x % frame.width, axis=1)

        def rows(block: Any, carry: Any) -> Any:
            first = pl.multiple_of(block * _ROWS, _ROWS)
            sums = [jnp.zeros((_ROWS, frame.width), jnp.float32) for _ in range(k)]
            for i, (y, x) in enumerate(offsets):
                weight = weights_ref[0, i, pl.ds(first, _ROWS)]
                column = frame.columns.index(x)
                for mask in range(k):
                    # Loads begin at whole tiles: one or two of them hold the rows.
                    within = y % _ROWS
                    tiles = _ROWS if within == 0 else 2 * _ROWS
                    here = shifted[column, mask, pl.ds(first + frame.top + y - within, tiles)]
                    sums[mask] = sums[mask] + weight * here[within : within + _ROWS]
            for mask in range(k):
                wide[mask, pl.ds(first + frame.top, _ROWS)] = sums[mask]
            return carry

        return jax.lax.fori_loop(0, frame.rows // _ROWS, rows, carry)

    jax.lax.fori_loop(0, iterations, once, 0)
    out_ref[0] = wide[:, inside]


def _repeat_border(wide: Any, frame: _Frame, height: Any, width: Any) -> None:
    """Fills what is around the real `height` x `width` pixels with the nearest of them."""
    last_column, last_row = frame.left + width - 1, frame.top + height - 1
    for mask in range(wide.shape[0]):
        x = wide[mask]
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        first = jnp.sum(jnp.where(lane == frame.left, x, 0), axis=1, keepdims=True)
        last = jnp.sum(jnp.where(lane == last_column, x, 0), axis=1, keepdims=True)
        x = jnp.where(lane < frame.left, first, jnp.where(lane > last_column, last, x))
        row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        above = jnp.sum(jnp.where(row == frame.top, x, 0), axis=0, keepdims=True)
        below = jnp.sum(jnp.where(row == last_row, x, 0), axis=0, keepdims=True)
        wide[mask] = jnp.where(row < frame.top, above, jnp.where(row > last_row, below, x))
