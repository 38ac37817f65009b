"""Making models fast: as shapes alone, or with random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


class Keys:
    """The same keys as `nnx.Rngs(seed)` gives to parameters, with a plain counter.

    The counter of `nnx.Rngs` is an array; where it is traced, each draw makes JAX search all
    operations so far (Flax 0.12.8), and a CLIP takes ten times as long to trace.
    """

    def __init__(self, seed: int | jax.Array = 0):
        """From a number, or from a key."""
        self._key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
        self._drawn = 0

    def params(self) -> jax.Array:
        """The next key."""
        self._drawn += 1
        return jax.random.fold_in(self._key, self._drawn - 1)


def abstract(make: Callable[[Any], Module]) -> Module:
    """`make(rngs)` with shapes for arrays; nothing is computed or allocated."""
    return nnx.eval_shape(lambda: make(Keys()))


def initialised(make: Callable[[Any], Module], seed: int = 0) -> Module:
    """`make(rngs)` with its random numbers drawn in one program, which is much faster."""
    graph, _ = nnx.split(abstract(make))
    return nnx.merge(graph, jax.jit(lambda: nnx.state(make(Keys(seed))))())
