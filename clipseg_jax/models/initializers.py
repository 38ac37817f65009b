"""PyTorch's default initialisation, from which the published heads were trained.

PyTorch 2 `nn.Linear` and `nn.Conv2d`: weights and biases uniform within 1 / sqrt(fan_in).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """An initializer: uniform within 1 / sqrt(fan_in), for any shape."""

    def init(key: Array, shape: Sequence[int], dtype: object = jnp.float32) -> Array:
        limit = fan_in**-0.5
        return jax.random.uniform(key, shape, jnp.float32, -limit, limit)

    return init


def torch_linear(inputs: int, outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer (or 1x1 convolution) with PyTorch's initialisation."""
    uniform = torch_uniform(inputs)
    return nnx.Linear(
        inputs, outputs, use_bias=use_bias, kernel_init=uniform, bias_init=uniform, rngs=rngs
    )
