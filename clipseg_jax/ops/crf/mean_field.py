"""Mean-field inference in the fully connected CRF (Kraehenbuehl and Koltun 2011).

    Q <- softmax(-U - sum_k compatibility_k(K_k Q))

for all pixels at once, a fixed number of times, from Q = softmax(-U). K_k are normalised Gaussian
kernels over all pairs of pixels, a pixel and itself included (spec densecrf, section 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.ops.crf import exact, lattice
from clipseg_jax.ops.crf.config import Compatibility, CRFConfig

Filter = Callable[[Array], Array]  # (n, c) -> (n, c)
Result = TypeVar("Result")

_TINY = 1e-20
_LADDER_FROM = 2**17  # lattices that may have fewer vertices aren't worth several programs


def dense_crf(
    unary: Array,
    images: Array,
    cfg: CRFConfig,
    *,
    sizes: Array | None = None,
    iterations: Array | int | None = None,
) -> Array:
    """Marginals (b, h, w, c) float32 of a dense CRF on each image.

    Jit it with `cfg` static. Images are processed sequentially; to use several devices shard the
    batch with `jax.shard_map`.

    Args:
      unary: (b, h, w, c) energies, as -log(p); any number of labels c.
      images: (b, h, w, 3) uint8, in the channel order of `cfg.theta_beta`.
      cfg: kernels, iterations and filter.
      sizes: (b, 2) real rows and columns of padded images; None: no padding. Padding does not
        influence real pixels; its marginals are undefined.
      iterations: overrides `cfg.iterations`; may be traced, so that one program serves all counts.

    The lattice is limited to 2**32 cells (`lattice.Cells`), whose tables take up to 2 GB. With
    CLIP-ES's thetas that is an image of about 5000 x 5000 pixels. pydensecrf has 16-bit keys, which
    overflow silently from about 12,000 pixels at theta_gamma 1.

    Raises:
      ValueError: inconsistent shapes or dtypes, or an image beyond the limit.
    """
    _check(unary, images, cfg, sizes)
    updates = cfg.iterations if iterations is None else iterations

    def infer(flat: Array, real: Array, pairwise: Filter) -> Array:
        return jax.lax.fori_loop(
            0, updates, lambda _, q: _softmax(-flat - pairwise(q)), _softmax(-flat)
        ).reshape(unary.shape[1:])

    return _each_image(unary, images, cfg, sizes, infer)


def dense_crf_monitored(
    unary: Array, images: Array, cfg: CRFConfig, *, sizes: Array | None = None
) -> tuple[Array, Array]:
    """`dense_crf`, and the divergence (b, iterations + 1) before and after each update.

    For choosing the number of iterations, and the counterpart of pydensecrf's `klDivergence`, with
    which a golden compares it: the Kullback-Leibler divergence from the CRF's distribution up to a
    constant, with the pairwise term not halved. Costs one more filtering than `dense_crf`, whose
    arguments and errors it has.
    """
    _check(unary, images, cfg, sizes)

    def infer(flat: Array, real: Array, pairwise: Filter) -> tuple[Array, Array]:
        def divergence(q: Array, energy: Array) -> Array:
            terms = q * (jnp.log(jnp.maximum(q, _TINY)) + flat + energy)
            return jnp.sum(jnp.where(real[:, None], terms, 0))

        def update(q: Array, _: None) -> tuple[Array, Array]:
            energy = pairwise(q)
            return _softmax(-flat - energy), divergence(q, energy)

        q, divergences = jax.lax.scan(update, _softmax(-flat), length=cfg.iterations)
        divergences = jnp.append(divergences, divergence(q, pairwise(q)))
        return q.reshape(unary.shape[1:]), divergences

    return _each_image(unary, images, cfg, sizes, infer)


def _softmax(x: Array) -> Array:
    """Over the labels of (n, c)."""
    # For 2 labels XLA's reductions took ten times as long on CPUs; for 21 they are faster.
    if x.shape[1] > 8:
        return jax.nn.softmax(x)
    top = functools.reduce(jnp.maximum, jnp.split(x, x.shape[1], axis=1))
    powers = jax.lax.optimization_barrier(jnp.exp(x - top))
    return powers / functools.reduce(jnp.add, jnp.split(powers, x.shape[1], axis=1))


def _each_image(
    unary: Array,
    images: Array,
    cfg: CRFConfig,
    sizes: Array | None,
    infer: Callable[[Array, Array, Filter], Result],
) -> Result:
    """Maps `infer` over images; it gets energies (n, c), real pixels (n,) and a pairwise filter."""
    shape = (images.shape[1], images.shape[2])
    grid = _Grid(shape, cfg)
    everywhere = jnp.ones(shape, bool).reshape(-1)

    def smoothness_of(real: Array) -> Filter:
        return _normalised(grid.smoothness(real), real, cfg.normalisation)

    # This kernel depends on positions only: images of one size share it.
    shared = smoothness_of(everywhere) if sizes is None else None

    def one(each: tuple[Array, ...]) -> Result:
        energy, image, *size = each
        real = grid.real(size[0]) if size else everywhere
        smoothness = shared or smoothness_of(real)
        flat = jnp.where(real[:, None], energy.reshape(len(real), -1), 0)

        def with_kernel(kernel: Filter) -> Result:
            appearance = _normalised(kernel, real, cfg.normalisation)

            def pairwise(q: Array) -> Array:
                smooth = _compatible(smoothness(q), cfg.w2)
                return smooth + _compatible(appearance(q), cfg.w1)

            return infer(flat, real, pairwise)

        return grid.with_appearance(image, real, with_kernel)

    batch = [jnp.asarray(unary, jnp.float32), jnp.asarray(images)]
    return jax.lax.map(one, (*batch, *([] if sizes is None else [jnp.asarray(sizes)])))


class _Grid:
    """Filters over the pixels of one image shape, in raster order."""

    def __init__(self, shape: tuple[int, int], cfg: CRFConfig) -> None:
        self.shape, self.cfg = shape, cfg
        rows, columns = (i.reshape(-1) for i in jnp.indices(shape))
        self.index = [rows, columns] if cfg.rows_first else [columns, rows]

    def real(self, size: Array) -> Array:
        """Mask (n,) of the pixels inside the top-left `size` (2,) = rows, columns."""
        rows, columns = (jnp.arange(n) < s for n, s in zip(self.shape, size, strict=True))
        return (rows[:, None] & columns).reshape(-1)

    def smoothness(self, real: Array) -> Filter:
        """The unnormalised position filter."""
        levels = self._positions(self.cfg.theta_gamma)
        if self.cfg.filter == "exact":
            columns, rows = levels[::-1] if self.cfg.rows_first else levels
            return functools.partial(
                exact.smooth, columns=jnp.asarray(columns), rows=jnp.asarray(rows)
            )
        built, numbers = lattice.build(levels, jnp.stack(self.index), real)
        return _lattice_filter(built, numbers, min(numbers.count, built.cells.size))

    def with_appearance(self, image: Array, real: Array, use: Callable[[Filter], Result]) -> Result:
        """Calls `use` with the unnormalised filter of positions and colours of an image."""
        colours = np.arange(256, dtype=np.float32) / _each(self.cfg.theta_beta, 3)[:, None]
        levels = [*self._positions(self.cfg.theta_alpha), *colours]
        channels = image.reshape(-1, 3).astype(jnp.int32)
        index = jnp.stack([*self.index, *channels.T])
        if self.cfg.filter == "exact":
            features = jnp.stack([jnp.asarray(v)[i] for v, i in zip(levels, index, strict=True)])
            return use(functools.partial(exact.brute_force, features=features))

        built, numbers = lattice.build(levels, index, real)
        bound = min(numbers.count, built.cells.size)
        ladder = _ladder(index.shape[1], bound)

        def branch(capacity: int) -> Callable[[], Result]:
            return lambda: use(_lattice_filter(built, numbers, capacity))

        rung = jnp.searchsorted(jnp.asarray(ladder), built.total)
        return jax.lax.switch(rung, [branch(capacity) for capacity in ladder])

    def _positions(self, theta: float | tuple[float, float]) -> list[np.ndarray]:
        sizes = zip(self.shape[::-1], _each(theta, 2), strict=True)
        levels = [np.arange(length, dtype=np.float32) / width for length, width in sizes]
        return levels[::-1] if self.cfg.rows_first else levels


def _each(theta: float | tuple[float, ...], count: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(theta, np.float32), count)


def _ladder(pixels: int, bound: int) -> list[int]:
    # The bound on vertices is rarely reached: one branch per capacity, of which the smallest runs.
    if bound < _LADDER_FROM:
        return [bound]
    return sorted({*(c for c in (pixels // 4, pixels) if c < bound), bound})


def _lattice_filter(built: lattice.Lattice, numbers: lattice.Cells, capacity: int) -> Filter:
    near = lattice.neighbours(built, numbers, capacity)
    return functools.partial(
        lattice.filter_values, weights=built.weights, vertices=built.vertices, near=near
    )


def _normalised(kernel: Filter, real: Array, mode: str) -> Filter:
    """The kernel over real pixels, normalised by its sums (spec densecrf, section 6)."""
    inside = real[:, None].astype(jnp.float32)
    if mode == "none":
        return lambda q: kernel(inside * q)
    sums = kernel(inside) + _TINY
    if mode == "before":
        return lambda q: kernel(inside * (q / sums))
    if mode == "after":
        return lambda q: kernel(inside * q) / sums
    root = 1 / jnp.sqrt(sums)
    return lambda q: root * kernel(inside * (root * q))


def _compatible(messages: Array, compatibility: Compatibility) -> Array:
    w = jnp.asarray(compatibility, jnp.float32)
    if w.ndim == 0:
        return -w * messages  # Potts
    if w.ndim == 1:
        return w * messages
    return jnp.matmul(messages, (w + w.T) / 2, precision="highest")


def _check(unary: Array, images: Array, cfg: CRFConfig, sizes: Array | None) -> None:
    if unary.ndim != 4:
        raise ValueError(f"unary energies of shape {unary.shape}; expected (b, h, w, c)")
    if images.shape != (*unary.shape[:3], 3):
        raise ValueError(
            f"images of shape {images.shape} do not match unary energies of shape {unary.shape}; "
            f"expected {(*unary.shape[:3], 3)}"
        )
    if images.dtype != jnp.uint8:
        raise ValueError(
            f"images are {images.dtype}; pass uint8, because theta_beta is in pixel values 0 to 255"
        )
    if sizes is not None and sizes.shape != (unary.shape[0], 2):
        raise ValueError(f"sizes of shape {sizes.shape}; expected {(unary.shape[0], 2)}")
    for name in ("w1", "w2"):
        shape = np.shape(getattr(cfg, name))
        if shape and shape[-1] != unary.shape[-1]:
            raise ValueError(
                f"{name} has {shape[-1]} labels, the unary {unary.shape[-1]}; they must agree"
            )
