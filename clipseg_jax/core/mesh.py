"""The device mesh, and how batches and parameters are laid out on it.

Two axes: "data" splits batches; "fsdp" splits them too, and parameters besides, for models that do
not fit one device. Axes are Auto: an Explicit one (jax's default) refuses plain reshapes of a
sharded batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

_BATCH = PartitionSpec(("data", "fsdp"))
_SPLIT_FROM = 2**16  # parameters; gathering smaller arrays costs more than keeping them whole


def make_mesh(devices: int | None = None, fsdp: int = 1, *, local: bool = False) -> Mesh:
    """A mesh over all devices of all processes, or the first ones; `fsdp` of them share a copy.

    `local`: over the devices of this process alone.

    Raises:
      ValueError: fewer devices than asked for, or not divisible by `fsdp`.
    """
    found = jax.local_devices() if local else jax.devices()
    count = len(found) if devices is None else devices
    if not 0 < count <= len(found):
        raise ValueError(
            f"{count} devices asked for, {len(found)} found; ask for 1 to {len(found)}"
        )
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"fsdp {fsdp} does not divide {count} devices; set it to 1 or a divisor")
    kinds = (AxisType.Auto, AxisType.Auto)
    names = ("data", "fsdp")
    return jax.make_mesh((count // fsdp, fsdp), names, axis_types=kinds, devices=found[:count])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, _BATCH)


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the mesh along their first axis.

    Raises:
      ValueError: the rows don't divide by this process's devices.
    """
    sharding = batch_sharding(mesh)
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


def own_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split along its first axis: undoes `shard_batch`."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Every leaf of `tree` on all devices of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding for each array or shape of `tree`: the longest axis that "fsdp" divides is split.

    Small arrays, and all of them where "fsdp" is 1, are whole on every device.
    """
    parts = mesh.shape["fsdp"]

    def of(leaf: Any) -> NamedSharding:
        divisible = [n if n % parts == 0 else 0 for n in leaf.shape]
        if parts == 1 or np.prod(leaf.shape) < _SPLIT_FROM or not any(divisible):
            return NamedSharding(mesh, PartitionSpec())
        axis = int(np.argmax(divisible))
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(of, tree)
