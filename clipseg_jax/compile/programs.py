"""A recipe's programs, compiled for devices that are not there; and what makes one fit."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipseg_jax.compile.cost import Cost, cost_of
from clipseg_jax.compile.flops import product_flops
from clipseg_jax.compile.topologies import Topology
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.methods.maskclip_plus.build import tower_name
from clipseg_jax.stages.programs import Program
from weights_convert import ARCHITECTURES, RANDOM

_USED = re.compile(r"[Uu]sed ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_USUAL = "ViT-B/16"


class TooLarge(NamedTuple):
    """A program that its devices cannot hold, and how many bytes it needs where that is known."""

    needed: int | None
    memory: int


class Variant(NamedTuple):
    """A change of the config under which a program was compiled anew."""

    options: str
    result: Cost | TooLarge


def prepared(
    config: ConfigDict, *, images_per_device: int | None, devices: int, dtype: str | None
) -> ConfigDict:
    """A copy of the config with random weights for its CLIP's, and sizes as the command says.

    Raises:
      ValueError: the config names weights that are no known architecture.
    """
    config = config.copy_and_resolve_references()
    config.unlock()
    name = config.clip.weights or _of_tower(config.clip.get("tower"))
    if name not in ARCHITECTURES:
        raise ValueError(
            f"--config.clip.weights={name} is no architecture that is known by name; give one of "
            f"{', '.join(ARCHITECTURES)}: weights are not needed to compile"
        )
    config.clip.weights = f"{RANDOM}{name}"
    if config.clip.get("tower"):
        config.clip.tower = ""
    for section in config.values():
        if not isinstance(section, ConfigDict):
            continue
        if dtype is not None and "dtype" in section:
            section.dtype = dtype
        if images_per_device is not None and isinstance(section.get("batch_size"), int):
            section.batch_size = images_per_device * devices
    return config


def programs_of(
    config: ConfigDict, image_px: tuple[int, int], names: Sequence[str] = ()
) -> Iterator[Program]:
    """The programs of a recipe, of all stages or of those that are named.

    Raises:
      ValueError: the method has no such program.
    """
    module = importlib.import_module(f"clipseg_jax.methods.{config.method}.programs")
    known = []
    with TemporaryDirectory() as folder:
        for program in module.programs(config, Path(folder), image_px):
            known.append(program.name)
            if not names or program.name in names:
                yield program
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"no program {', '.join(unknown)}; {config.method} has {', '.join(known)}")


def devices_of(program: Program, config: ConfigDict, topology: Topology) -> Mesh:
    """As many of the devices as share the program's images evenly, as the stages themselves do."""
    parts = config.train.accumulate_steps if program.section != "run" else 1
    rows, fsdp = program.images // parts, config.run.fsdp
    count = max(
        n for n in range(1, len(topology.devices) + 1) if rows % n == 0 and n % min(fsdp, n) == 0
    )
    return make_mesh(count, min(fsdp, count), among=topology.devices)


def compile_program(program: Program, config: ConfigDict, topology: Topology) -> Cost | TooLarge:
    """Compiles a program for the topology's devices."""
    mesh = devices_of(program, config, topology)
    traced = program.trace(mesh)
    flops = product_flops(traced.jaxpr.jaxpr)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return TooLarge(_needed(str(error)), topology.chip.memory)
    cost = cost_of(compiled, topology.chip, flops=flops, images=program.images, devices=mesh.size)
    return TooLarge(cost.needed, cost.memory) if cost.needed > cost.memory else cost


def what_fits(
    program: Program, config: ConfigDict, topology: Topology, image_px: tuple[int, int]
) -> Iterator[Variant]:
    """Variants of a program that is too large, each compiled; of every kind the first that fits."""
    for changes in _variants(program, config, topology):
        for values in changes:
            changed = config.copy_and_resolve_references()
            changed.unlock()
            changed.update_from_flattened_dict(values)
            (again,) = programs_of(changed, image_px, [program.name])
            options = " ".join(f"--config.{name}={value}" for name, value in values.items())
            result = compile_program(again, changed, topology)
            yield Variant(options, result)
            if isinstance(result, Cost):
                break


def _variants(
    program: Program, config: ConfigDict, topology: Topology
) -> Iterator[list[dict[str, Any]]]:
    """Lists of changes, from the smallest to the largest of a kind."""
    devices, section = len(topology.devices), program.section
    least = devices if program.images >= devices else 1
    batches = []
    size = program.images // 2
    while size >= least:
        batches.append({f"{section}.batch_size": size})
        size //= 2
    dtypes = {
        f"{name}.dtype": "bfloat16"
        for name, values in config.items()
        if isinstance(values, ConfigDict) and values.get("dtype") == "float32"
    }
    if dtypes:
        yield [dtypes]
    if section != "run":
        rows = program.images // config.train.accumulate_steps
        parts = [n for n in (2, 4, 8) if rows % (n * devices) == 0]
        yield [{"train.accumulate_steps": n * config.train.accumulate_steps} for n in parts]
        if "remat" in config.run and not config.run.remat:
            yield [{"run.remat": True}]
        yield [{"run.fsdp": n} for n in (2, 4, 8) if devices % n == 0]
    yield batches


def _of_tower(tower: str | None) -> str:
    """The CLIP of an image tower that MaskCLIP+'s configs name; without one the usual CLIP."""
    names = (n for n, each in ARCHITECTURES.items() if tower and tower_name(each.vision) == tower)  # type: ignore[arg-type]
    return next(names, _USUAL)


def _needed(message: str) -> int | None:
    found = _USED.search(message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None
