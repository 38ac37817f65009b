"""The device mesh, and the shardings of batches and parameters.

Two axes: "data" shards batches; "fsdp" shards batches and parameters, for models that do not fit on
one device. Of several TPU slices, "data" runs across them and "fsdp" within each. Axes are Auto:
with Explicit ones (JAX's default) reshaping a sharded batch is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")
Result = TypeVar("Result")

_BATCH = PartitionSpec(("data", "fsdp"))
_KERNELS = contextvars.ContextVar("kernels", default=True)
_MIN_SHARDED = 2**16  # elements; gathering smaller arrays costs more than replicating them


def make_mesh(
    devices: int | None = None,
    fsdp: int = 1,
    *,
    local: bool = False,
    among: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with axes "data" and "fsdp" over the devices of all processes.

    Args:
      devices: how many devices to use, the first ones; None: all.
      fsdp: size of the axis over which each parameter is sharded.
      local: over the devices of this process alone.
      among: over these, such as the devices of a topology that is compiled for and not there.

    Raises:
      ValueError: fewer devices than requested, not divisible by `fsdp`, or slices that are not used
        evenly or that `fsdp` does not divide.
    """
    available = among or (jax.local_devices() if local else jax.devices())
    count = len(available) if devices is None else devices
    if not 0 < count <= len(available):
        raise ValueError(
            f"{count} devices requested, {len(available)} available; request 1 to {len(available)}"
        )
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"fsdp {fsdp} does not divide {count} devices; set it to 1 or a divisor")
    kinds = (AxisType.Auto, AxisType.Auto)
    names = ("data", "fsdp")
    used = available[:count]
    slices = _slices(used)
    if len(slices) > 1:
        return Mesh(_across_slices(used, slices, fsdp), names, axis_types=kinds)
    # An axis may take a part of a slice's side: 8 x 2 devices of 4 x 4 chips.
    laid_out = mesh_utils.create_device_mesh(
        (count // fsdp, fsdp), used, allow_split_physical_axes=True
    )
    return Mesh(laid_out, names, axis_types=kinds)


def _slices(devices: Sequence[jax.Device]) -> Counter[int]:
    """Number of each TPU slice -> how many of the devices it has.

    Only TPUs are asked: JAX numbers the nodes of a GPU cluster so too, and their order is right.
    """
    return Counter(
        getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices
    )


def _across_slices(
    devices: Sequence[jax.Device], slices: Mapping[int, int], fsdp: int
) -> np.ndarray:
    """Devices (data, fsdp), one slice after the other; the network between them joins "data"."""
    sizes = sorted(set(slices.values()))
    if len(sizes) > 1:
        listed = ", ".join(f"{size} of slice {index}" for index, size in sorted(slices.items()))
        raise ValueError(
            f"{len(devices)} devices are {listed}; use equally many of each slice, such as all"
        )
    if sizes[0] % fsdp:
        raise ValueError(
            f"fsdp {fsdp} does not divide the {sizes[0]} devices of a slice ({len(slices)} "
            "slices); set it to 1 or a divisor: parameters are shared within a slice"
        )
    return mesh_utils.create_hybrid_device_mesh((sizes[0] // fsdp, fsdp), (len(slices), 1), devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shards the first axis of a batch over all devices."""
    return NamedSharding(mesh, _BATCH)


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from this process's rows of a batch, sharded along their first axis.

    Raises:
      ValueError: the rows are not divisible by this process's devices.
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


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array sharded along its first axis; inverts `shard_batch`."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_mesh(mesh: Mesh, function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, to be jitted for this mesh: ops that are kernels find it by `by_rows`."""

    @functools.wraps(function)
    def traced(*args: Any) -> Result:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def takes_kernels() -> bool:
    """Whether what is traced now may have kernels: `by_rows` must know its devices."""
    known = not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1
    return known and _KERNELS.get()


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """What is traced inside has no kernels: for programs that are to run elsewhere."""
    token = _KERNELS.set(False)
    try:
        yield
    finally:
        _KERNELS.reset(token)


def by_rows(function: Callable[..., Result], rows: Any) -> Result:
    """`function(rows)`, each device its own rows of the first axes, of a function traced `on_mesh`.

    For kernels, which XLA does not partition. Arrays of one row are shared by all devices, as all
    are if their rows cannot be divided.
    """
    mesh = jax.sharding.get_abstract_mesh()
    most = max(leaf.shape[0] for leaf in jax.tree.leaves(rows))
    if mesh.empty or mesh.manual_axes or mesh.size == 1 or most % mesh.size:
        return function(rows)
    specs = jax.tree.map(lambda leaf: _BATCH if leaf.shape[0] > 1 else PartitionSpec(), rows)
    return jax.shard_map(function, mesh=mesh, in_specs=(specs,), out_specs=_BATCH, check_vma=False)(
        rows
    )


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Copies every leaf of `tree` to all devices of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding per array (or shape) of `tree`: over "fsdp" along the longest divisible axis.

    Small arrays are replicated, and all arrays if "fsdp" is 1.
    """
    parts = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        divisible = [n if n % parts == 0 else 0 for n in leaf.shape]
        if parts == 1 or np.prod(leaf.shape) < _MIN_SHARDED or not any(divisible):
            return NamedSharding(mesh, PartitionSpec())
        axis = int(np.argmax(divisible))
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(sharding, tree)
