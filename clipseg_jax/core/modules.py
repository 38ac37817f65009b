"""Fast construction of models: abstract, or with random initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


class Keys:
    """The parameter keys of `nnx.Rngs(seed)`, with a Python integer as counter.

    The counter of `nnx.Rngs` is an array; when traced, each draw makes JAX search all previous
    operations (Flax 0.12.8), and tracing a CLIP takes ten times as long.
    """

    def __init__(self, seed: int | jax.Array = 0):
        """`seed` is an integer or a JAX key."""
        self._key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
        self._drawn = 0

    def params(self) -> jax.Array:
        """The next key."""
        self._drawn += 1
        return jax.random.fold_in(self._key, self._drawn - 1)


def abstract(make: Callable[[Any], Module]) -> Module:
    """`make(rngs)` with jax.ShapeDtypeStruct leaves; computes and allocates nothing."""
    return nnx.eval_shape(lambda: make(Keys()))


def initialised(make: Callable[[Any], Module], seed: int = 0) -> Module:
    """`make(rngs)` with all parameters initialised in one jitted program, which is much faster."""
    graph, _ = nnx.split(abstract(make))
    return nnx.merge(graph, jax.jit(lambda: nnx.state(make(Keys(seed))))())
