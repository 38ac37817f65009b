"""Painted pictures and which kinds of objects are in each: nothing else is learned from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipseg_jax.core.files import write_atomic
from clipseg_jax.demo import world
from clipseg_jax.task import HostBatch
from input_pipeline.prepare.workers import in_processes

SIDE_PX = 96
_CHUNK = 500
_SPLIT = "backbone"  # no recipe of the demo learns from it or is scored on it


class Pictures(NamedTuple):
    """n pictures with their image labels."""

    images: np.ndarray  # (n, SIDE_PX, SIDE_PX, 3) uint8
    present: np.ndarray  # (n, classes) bool


def _chunk(indices: range) -> Pictures:
    painted = [world.make(_SPLIT, index, SIDE_PX) for index in indices]
    present = [[name in each.classes for name in world.CLASSES] for each in painted]
    return Pictures(np.stack([each.image for each in painted]), np.asarray(present))


def load(path: Path, count: int) -> Pictures:
    """The first `count` pictures (a multiple of 500); paints them into `path` if it is absent."""
    if path.exists():
        with np.load(path) as stored:
            return Pictures(stored["images"], stored["present"])
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = [range(start, start + _CHUNK) for start in range(0, count, _CHUNK)]
    painted = in_processes("paint", unit="picture")(_chunk, chunks)
    whole = Pictures(*map(np.concatenate, zip(*painted, strict=True)))
    write_atomic(path, lambda file: np.savez(file, **whole._asdict()))
    return whole


def batches(data: Pictures, size: int, seed: int, start: int) -> Iterator[HostBatch]:
    """Endless batches from step `start` on; each epoch has an order of its own."""
    count = len(data.images)
    step = start
    while True:
        epoch, at = divmod(step * size, count - count % size)
        order = np.random.default_rng([seed, epoch]).permutation(count)[at : at + size]
        yield {"image": data.images[order], "present": data.present[order], "index": order}
        step += 1
