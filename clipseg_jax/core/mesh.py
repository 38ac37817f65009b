"""The device mesh, and batches laid out on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh with one axis "data" over all devices of all processes, or the first `devices`.

    Axes are Auto: an Explicit one (jax's default) refuses plain reshapes of a sharded batch.

    Raises:
      ValueError: fewer devices than asked for.
    """
    found = jax.devices()
    count = len(found) if devices is None else devices
    if not 0 < count <= len(found):
        raise ValueError(
            f"{count} devices asked for, {len(found)} found; ask for 1 to {len(found)}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=found[:count])


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the mesh along their first axis.

    Raises:
      ValueError: the rows don't divide by this process's devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    local = len(mesh.local_devices)
    for name, array in batch.items():
        if array.shape[0] % local:
            raise ValueError(
                f"{name} of {array.shape[0]} rows is not divisible by {local} devices; "
                f"set the batch size to a multiple of {mesh.size}"
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Every leaf of `tree` on all devices of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
