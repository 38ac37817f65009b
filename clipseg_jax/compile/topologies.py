"""Devices that are not there, as JAX describes them to its compilers, and what they can do."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

_GIB = 2**30


class Chip(NamedTuple):
    """What a device can do at most, as its maker states.

    Attributes:
      platform: "tpu" or "cuda".
      memory: bytes that programs may use.
      flops: bfloat16 products a second.
      bandwidth: bytes a second of its memory.
      links: bytes a second to all its neighbours together, of collectives.
      clock: cycles a second, of the compiler's estimates; 0: it makes none.
    """

    platform: str
    memory: int
    flops: float
    bandwidth: float
    links: float
    clock: float = 0.0


CHIPS = {
    "v5e": Chip("tpu", int(15.75 * _GIB), 197e12, 819e9, 200e9, 1.5e9),
    "v5p": Chip("tpu", int(95.74 * _GIB), 459e12, 2765e9, 600e9, 1.75e9),
    "v6e": Chip("tpu", int(31.25 * _GIB), 918e12, 1640e9, 448e9, 1.75e9),
    "a100": Chip("cuda", 80 * 10**9, 312e12, 2039e9, 300e9),
    "h100": Chip("cuda", 80 * 10**9, 989e12, 3352e9, 450e9),
    "h200": Chip("cuda", 141 * 10**9, 989e12, 4800e9, 450e9),
}
# Of what a TPU pod calls itself: v5litepod-16 has 16 chips, v5p-16 8, of two cores each.
_ACCELERATOR_TYPES = {"v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
# Multiprocessors, their shared memory (at most for a block: 1 kB less), memory clock and more, as
# the CUDA driver reports them.
_GPUS = {
    "a100": (108, 64, 167936, 85_100_068_864, 2_039_040_000_000, 41_943_040, 1.41, 8),
    "h100": (132, 128, 233472, 84_942_979_072, 3_352_320_000_000, 52_428_800, 1.98, 9),
    "h200": (132, 128, 233472, 151_397_597_184, 4_800_000_000_000, 52_428_800, 1.98, 9),
}


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]


def find_topology(name: str, *, hosts: int = 1, slices: int = 1) -> Topology:
    """The devices that "v5e:4x4", "v5p:2x2x2", "h100" or "h200:8" stand for.

    Args:
      name: of TPUs the shape of a slice in chips; of GPUs how many a host has, by default one.
      hosts: of GPUs, each with as many.
      slices: of TPUs, connected by the data-centre network.

    Raises:
      ValueError: an unknown name or shape, or the package that compiles for it is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ValueError(
            f"no accelerator {kind!r}; choose {', '.join(CHIPS)}, such as v5e:4x4 or h100:8"
        )
    chip = CHIPS[kind]
    if chip.platform == "cuda":
        return Topology(name, chip, _gpus(kind, shape or "1", hosts))
    if hosts != 1:
        raise ValueError(f"--hosts is for GPUs; {name} says how many chips a slice has")
    return Topology(name, chip, _tpus(name, kind, shape, slices))


def _tpus(name: str, kind: str, shape: str, slices: int) -> Sequence[jax.Device]:
    _need("libtpu", "aot-tpu")
    axes = 3 if kind == "v5p" else 2
    if not re.fullmatch(r"[1-9]\d{0,2}" + r"x[1-9]\d{0,2}" * (axes - 1), shape):
        example = "2x2x2" if axes == 3 else "4x4"
        raise ValueError(f"a slice of {kind} has a shape such as {kind}:{example}, not {name!r}")
    pod, cores = _ACCELERATOR_TYPES[kind]
    chips = math.prod(map(int, shape.split("x")))
    # Without these the compiler asks a metadata server, which only Google's machines have.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no chip is opened, so two may compile
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{pod}-{chips * cores}"
    return _described(name, platform="tpu", topology_name=name, num_slices=slices)


def _gpus(kind: str, count: str, hosts: int) -> Sequence[jax.Device]:
    _need("jax_cuda12_plugin", "aot-gpu")
    if not re.fullmatch(r"[1-9]\d{0,2}", count) or hosts < 1:
        raise ValueError(f"{count} GPUs on {hosts} hosts; give {kind}:8 and --hosts=2")
    return _described(
        f"{kind}:{count}",
        platform="cuda",
        topology_name="",
        target_config=_gpu_description(kind),
        topology=f"1x{hosts}x{count}",
    )


def _described(name: str, **description: Any) -> Sequence[jax.Device]:
    try:
        return topologies.get_topology_desc(**description).devices
    except (ValueError, RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"the compiler knows no {name}: {said}") from error


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{package} is not installed: pip install 'clipseg_jax[{extra}]'")


def _gpu_description(kind: str) -> str:
    """A GPU as the text of XLA's `GpuTargetConfigProto`."""
    cores, lanes, shared, memory, bandwidth, cache, clock, major = _GPUS[kind]
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_core: {shared}
          shared_memory_per_block_optin: {shared - 1024}
          threads_per_core_limit: 2048
          core_count: {cores}
          fpus_per_core: {lanes}
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          thread_dim_limit_x: 1024
          thread_dim_limit_y: 1024
          thread_dim_limit_z: 64
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          memory_bandwidth: {bandwidth}
          l2_cache_size: {cache}
          clock_rate_ghz: {clock}
          device_memory_size: {memory}
          cuda_compute_capability {{ major: {major} feature_extension: {extension} }}
          dnn_version: "9.10.0"
          driver_version: "12.8.0"
          runtime_version: "12.8.0"
          compile_time_toolkit_version: "12.8.0"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        device_description_str: "{kind}"
    """
