"""StableHLO by `jax.export`: one file that JAX runs on CPUs, GPUs and TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from clipseg_jax.export.function import Function

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(function: Function, batch: int | None) -> bytes:
    """The function with its weights, as `jax.export` serializes it.

    `batch`: images at once; None: any number, one after the other.
    """
    h, w = function.size

    def one_by_one(images: Array) -> tuple[Array, ...]:
        def one(image: Array) -> tuple[Array, ...]:
            return tuple(each[0] for each in function.call(image[None]))

        return jax.lax.map(one, images)

    rows = export.symbolic_shape("b")[0] if batch is None else batch
    call = jax.jit(one_by_one if batch is None else function.call)
    images = jax.ShapeDtypeStruct((rows, h, w, 3), jnp.uint8)
    return bytes(export.export(call, platforms=PLATFORMS)(images).serialize())


def run_stablehlo(content: bytes, images: np.ndarray) -> list[np.ndarray]:
    """What the file's function returns for images (b, h, w, 3) uint8."""
    return [np.asarray(each) for each in export.deserialize(bytearray(content)).call(images)]
