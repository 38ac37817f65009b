"""The permutohedral lattice: a Gaussian filter in d dimensions, linear in the number of points.

A point's feature is lifted to the hyperplane sum(x) = 0 of R^(d+1) and lies there in a simplex of
the lattice A*_d. Filtering splats values to its d+1 vertices with barycentric weights, blurs along
the d+1 lattice directions, and slices them back (Adams, Baek and Davis 2010; spec densecrf,
sections 4 and 5). No hash table is used: features are bounded, so every possible vertex has a
number, its cell, and a bit table over all cells tells which vertices exist.

Coordinates: the vertex (d+1) * a + k, with integers a that sum to -k, has remainder k in 0..d.
Arrays of coordinates hold a_1..a_d; a_0 is implied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_MOST_CELLS = 2**32


@dataclasses.dataclass(frozen=True)
class Cells:
    """A numbering 0..count-1 of all vertices around features in [0, upper], independent of images.

    Along axis j the lifted feature is -j * c_j, with c_j the scaled feature, plus a part implied by
    the axes after j. Without that part all vertices fill a box with little waste.
    """

    sizes: tuple[int, ...]  # cells along axes 1..d

    @classmethod
    def within(cls, upper: Sequence[float]) -> Cells:
        """Cells for features between 0 and `upper` (d,), in standard deviations.

        Raises:
          ValueError: more than 2**32 cells.
        """
        d = len(upper)
        # A vertex of the simplex is at most j/(j+1) from the feature; rounding down adds as much.
        sizes = tuple(
            math.floor(j * top * scale / (d + 1) + 2 * j / (j + 1) + 1e-3) + 1
            for j, (top, scale) in enumerate(zip(upper, _scales(d), strict=True), start=1)
        )
        cells = cls(sizes)
        if cells.count > _MOST_CELLS:
            raise ValueError(
                f"features up to {[round(float(top), 1) for top in upper]} thetas need "
                f"{cells.count} lattice cells, at most {_MOST_CELLS} are supported; use "
                "larger thetas or a smaller image"
            )
        return cells

    @property
    def stride(self) -> int:
        """Cells per remainder, rounded up to whole 32-bit words."""
        return -(-math.prod(self.sizes) // 32) * 32

    @property
    def count(self) -> int:
        """Cells of all d+1 remainders."""
        return (len(self.sizes) + 1) * self.stride

    def number(self, a: Array | Sequence[Array], remainder: Array) -> tuple[Array, Array]:
        """Cell (uint32) of each vertex a (d, ...), and whether the vertex lies inside the box."""
        cell, inside, after = jnp.uint32(0), jnp.bool_(True), remainder
        for j in range(len(self.sizes), 0, -1):
            size = self.sizes[j - 1]
            position = a[j - 1] + _floor_divide(after, j + 1) + (size - 1)
            inside &= (position >= 0) & (position < size)
            cell = cell * size + position.astype(jnp.uint32)
            after = after + a[j - 1]
        return cell + remainder.astype(jnp.uint32) * self.stride, inside

    def vertex(self, cell: Array) -> tuple[Array, Array]:
        """Coordinates (d, ...) and remainder of each cell; inverts `number`."""
        remainder = after = (cell // self.stride).astype(jnp.int32)
        cell = cell % self.stride
        positions = []
        for size in self.sizes:
            positions.append((cell % size).astype(jnp.int32))
            cell = cell // size
        a: list[Array] = []
        for j in range(len(self.sizes), 0, -1):
            a.insert(0, positions[j - 1] - (self.sizes[j - 1] - 1) - _floor_divide(after, j + 1))
            after = after + a[0]
        return jnp.stack(a), remainder


def locate(levels: Sequence[np.ndarray], index: Array) -> tuple[Array, Array]:
    """The simplices that hold n points; point i has the features levels[j][index[j, i]].

    Returns coordinates (d, d + 1, n), int32, of the vertex of each remainder, and the points'
    barycentric weights (d + 1, n), float32.
    """
    d = len(levels)
    # Lifted to d+1 coordinates that sum to 0. Products are computed per level in NumPy: XLA would
    # fuse them with the sums, whose rounding moves points to other simplices.
    total = jnp.zeros(index.shape[1])
    rows: list[Array] = []
    for j, scale in reversed(list(enumerate(_scales(d)))):
        scaled = levels[j] * scale
        rows.insert(0, total - jnp.asarray(scaled * np.float32(j + 1))[index[j]])
        total = total + jnp.asarray(scaled)[index[j]]
    lifted = jnp.stack([total, *rows])

    # The nearest point of remainder 0, coordinate by coordinate, and the order of the differences:
    # rank 0 is the largest; of ties the last.
    step = np.float32(1 / (d + 1))
    nearest = jnp.round(lifted * step)
    offset = lifted - nearest * (d + 1)
    one, other = offset[:, None], offset[None]
    later = np.triu(np.ones((d + 1, d + 1), bool), 1)[..., None]
    earlier = np.tril(np.ones((d + 1, d + 1), bool), -1)[..., None]
    below = (later & (one < other)) | (earlier & ~(other < one))
    rank = jnp.sum(below, axis=1, dtype=jnp.int32)
    # These coordinates need not sum to 0: shift those with the largest rounding errors.
    a0 = nearest.astype(jnp.int32)
    rank += jnp.sum(a0, axis=0)
    moved = (rank < 0).astype(jnp.int32) - (rank > d)
    rank, a0 = jax.lax.optimization_barrier((rank + moved * (d + 1), a0 + moved))

    # Differences in order of descending rank are the barycentric weights.
    t = (lifted - (a0 * (d + 1)).astype(jnp.float32)) * step
    ranks = np.arange(d + 1)[:, None, None]
    by_rank = jnp.sum(jnp.where(rank == ranks, t, 0), axis=1)  # (d + 1, n)
    first = by_rank[d:] + (1 - by_rank[:1])
    rest = by_rank[:d] - by_rank[1:]
    lowered = rank[1:, None] > (d - np.arange(d + 1))[None, :, None]
    return a0[1:, None] - lowered, jnp.concatenate([first, rest[::-1]])


class Lattice(NamedTuple):
    """The vertices that a set of points touches, and a table to look them up."""

    weights: Array  # (d + 1, n) float32, 0 for masked points
    vertices: Array  # (d + 1, n) int32, `bound` = (d + 1) * n for masked points
    cells: Array  # (bound,) uint32, ascending; undefined from `total` on
    total: Array  # () int32 vertices
    bits: Array  # (words,) uint32: which cells are vertices, 32 cells a word
    before: Array  # (words,) int32: number of vertices before the word


def build(levels: Sequence[np.ndarray], index: Array, real: Array) -> tuple[Lattice, Cells]:
    """The lattice of the points i with features levels[j][index[j, i]] for which `real` holds.

    Marks vertices in a table with a byte per cell and packs it to bits, one remainder at a time. A
    look-up is then a bit test and a population count.

    Args:
      levels: per axis the values >= 0 of its feature, ascending, float32.
      index: (d, n) int32.
      real: (n,) bool, false for points to leave out.

    Raises:
      ValueError: the range of the features exceeds `Cells`.
    """
    d, n = index.shape
    numbers = Cells.within([values[-1] for values in levels])
    bound = (d + 1) * n
    a, weights = locate(levels, index)
    cells, _ = numbers.number(a, jnp.arange(d + 1)[:, None])  # (d + 1, n)

    def mark(each: tuple[Array, Array]) -> Array:
        cell, first = each
        place = jnp.where(real, (cell - first).astype(jnp.int32), numbers.stride)
        marked = jnp.zeros(numbers.stride, bool).at[place].set(True, mode="drop")
        marked = marked.reshape(-1, 32).astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)
        return jnp.sum(marked, axis=1, dtype=jnp.uint32)

    firsts = jnp.arange(d + 1, dtype=jnp.uint32) * numbers.stride
    bits = jax.lax.map(mark, (cells, firsts)).reshape(-1)
    held = jax.lax.population_count(bits).astype(jnp.int32)
    upto = jnp.cumsum(held)

    weights = jnp.where(real, weights, 0)
    sorted_cells = jnp.zeros(bound, jnp.uint32)
    lattice = Lattice(weights, cells, sorted_cells, upto[-1], bits, upto - held)
    vertices = jnp.where(real, find(lattice, cells), bound)
    sorted_cells = sorted_cells.at[vertices.reshape(-1)].set(cells.reshape(-1), mode="drop")
    return lattice._replace(vertices=vertices, cells=sorted_cells), numbers


def find(lattice: Lattice, cell: Array) -> Array:
    """Index of the vertex of each cell; -1 if the cell is not a vertex."""
    word = (cell >> 5).astype(jnp.int32)
    bits = lattice.bits.at[word].get(mode="clip")
    before = lattice.before.at[word].get(mode="clip")
    bit = cell & 31
    lower = bits & ((jnp.uint32(1) << bit) - 1)
    place = before + jax.lax.population_count(lower).astype(jnp.int32)
    return jnp.where((bits >> bit) & 1 == 1, place, -1)


def neighbours(lattice: Lattice, numbers: Cells, capacity: int) -> Array:
    """The two neighbours along each lattice direction: (d + 1, 2, capacity + 1), int32.

    `capacity` must be at least the number of vertices. The index `capacity` means "no vertex" and
    is its own neighbour.
    """
    d = len(numbers.sizes)
    a, remainder = jax.lax.optimization_barrier(numbers.vertex(lattice.cells[:capacity]))
    axis = np.arange(d + 1)[:, None, None]
    # Step 1: q - 1 everywhere, q + d along the axis; step -1: the reverse.
    step = np.array([1, -1])[:, None]
    wraps = (remainder == jnp.where(step == 1, 0, d)).astype(jnp.int32)  # (2, capacity)
    moved = [x + step * ((axis == j) - wraps) for j, x in enumerate(a, start=1)]
    cell, inside = numbers.number(moved, remainder - step + (d + 1) * step * wraps)
    neighbour = find(lattice, cell)
    exists = jnp.arange(capacity) < lattice.total
    neighbour = jnp.where(exists & inside & (neighbour >= 0), neighbour, capacity)
    return jnp.pad(neighbour, ((0, 0), (0, 0), (0, 1)), constant_values=capacity)


def filter_values(
    values: Array, weights: Array, vertices: Array, near: Array, *, reverse: bool = False
) -> Array:
    """Splat, blur, slice: a constant times the Gaussian filter (n, c) of values (n, c).

    Args:
      values: (n, c) float32.
      weights, vertices: (d + 1, n) as in `Lattice`.
      near: (d + 1, 2, capacity + 1) from `neighbours`.
      reverse: blur the directions from last to first: the transposed filter.
    """

    # Scans, because all directions at once need large intermediates, and XLA would fuse successive
    # blurs to 2**(d+1) gathers.
    def splat(grid: Array, to: tuple[Array, Array]) -> tuple[Array, None]:
        weight, vertex = to
        return grid.at[vertex].add(weight[:, None] * values, mode="drop"), None

    empty = jnp.zeros_like(values, shape=(near.shape[2], values.shape[1]))
    grid, _ = splat(
        empty, (weights[0], vertices[0])
    )  # outside the scan, for the carry's type under shard_map
    grid, _ = jax.lax.scan(splat, grid, (weights[1:], vertices[1:]))

    def blur(grid: Array, pair: Array) -> tuple[Array, None]:
        one, other = (grid.at[index].get(mode="promise_in_bounds") for index in pair)
        return grid + 0.5 * (one + other), None

    grid, _ = jax.lax.scan(blur, grid, near, reverse=reverse)
    alpha = np.float32(1 / (1 + 2.0 ** (1 - weights.shape[0])))
    return sum(
        (
            (alpha * weight)[:, None] * grid.at[vertex].get(mode="fill", fill_value=0)
            for weight, vertex in zip(weights, vertices, strict=True)
        ),
        jnp.zeros_like(values),
    )


def _floor_divide(x: Array, n: int) -> Array:
    # x // n for |x| < 2**24 n, without the sign tests, which compile and run slowly.
    return jax.lax.div(x + n * 2**24, jnp.full_like(x, n)) - 2**24


def _scales(d: int) -> list[np.float32]:
    # The scale at which splat, blur and slice together have standard deviation 1.
    spread = float(np.float32(math.sqrt(2 / 3) * (d + 1)))
    return [np.float32(spread / math.sqrt((i + 1) * (i + 2))) for i in range(d)]
