"""CAMs between stages: one small file for each image, and batches of images with their CAMs.

A file `<name>.npz` holds `classes` (m,) int32, ids of the image labels in their order, and `maps`
(m, hp, wp) float32, the refined CAMs scaled to [0, 1] at the patches' size. What the published
code saves at full size is these maps upsampled, which is cheap on a device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from clipseg_jax.core.files import load_arrays, write_atomic
from clipseg_jax.stages.data import readable_batches
from clipseg_jax.stages.image_classes import (
    Present,
    by_class_count,
    class_count,
    padded_classes,
)
from input_pipeline.batches.evaluation import EvaluationBatches, Skipped
from input_pipeline.datasets.layout import Example
from input_pipeline.walk import open_regular

_REMEDY = "delete it and cams.done.json, and run the stage `cams` again: it makes what is missing"
_ZIP_END = b"PK\x05\x06"  # of the record that ends a .npz file


class StoredCAM(NamedTuple):
    """An image's refined CAMs."""

    classes: np.ndarray  # (m,) int32
    maps: np.ndarray  # (m, hp, wp) float32 in [0, 1]


def cam_path(workdir: Path, name: str) -> Path:
    """Where an image's CAMs are."""
    return workdir / "cams" / f"{name}.npz"


def write_cams(path: Path, cam: StoredCAM) -> None:
    """Writes an image's CAMs, atomically."""
    write_atomic(path, lambda file: np.savez(file, **cam._asdict()))


def is_whole(path: Path) -> bool:
    """Whether a file of CAMs is there and was not cut short; its content is not checked."""
    try:
        with open_regular(path) as file:
            end = file.seek(-22, os.SEEK_END)
            record = file.read()
    except OSError:
        return False
    size, offset = (int.from_bytes(record[at : at + 4], "little") for at in (12, 16))
    return record.startswith(_ZIP_END) and size + offset == end


def read_cams(path: Path, class_number: int) -> StoredCAM:
    """Reads what `write_cams` wrote, for `class_number` classes.

    Raises:
      ValueError: a damaged file, classes that do not exist, or maps that are not in [0, 1].
      OSError: no file, or one that cannot be read.
    """
    classes, maps = load_arrays(path, _REMEDY, *StoredCAM._fields).values()
    if wrong := _wrong(classes, maps, class_number):
        raise ValueError(f"{path} is damaged ({wrong}); {_REMEDY}")
    return StoredCAM(classes, maps)


def _wrong(classes: np.ndarray, maps: np.ndarray, class_number: int) -> str:
    """What is wrong with CAMs; "": nothing."""
    if maps.ndim != 3 or classes.shape != maps.shape[:1] or 0 in maps.shape:
        return f"maps {maps.shape} for classes {classes.shape}"
    if classes.dtype != np.int32 or maps.dtype != np.float32:
        return f"maps of {maps.dtype} for classes of {classes.dtype}"
    ids = classes.tolist()
    if len(set(ids)) < len(ids) or not set(ids) <= set(range(class_number)):
        return f"classes {ids}, not different ids in 0..{class_number - 1}"
    if not np.all((maps >= 0) & (maps <= 1)):  # nor NaN
        return "values that are not in 0..1"
    return ""


def batches_with_cams(
    config: ConfigDict,
    workdir: Path,
    examples: Sequence[Example],
    patch_px: int,
    skipped: list[Skipped],
) -> Iterator[tuple[list[Example], Iterator[dict[str, Any]]]]:
    """Groups of `examples` with stored CAMs, and each group's batches, for `annotate`.

    A batch has besides what `evaluation_batches` gives: `maps` (b, k, hp, wp) float32, `grids`
    (b, 2), `classes` and `real` (b, k); k is the group's static bound. Images that can't be read
    are added to `skipped`.
    """
    count = class_count(config)
    stored = {e.name: read_cams(cam_path(workdir, e.name), count).classes for e in examples}
    present: Present = {name: tuple(int(i) for i in ids) for name, ids in stored.items()}
    for bound, members in by_class_count(examples, present):
        batches = readable_batches(
            config,
            members,
        )

        def with_cams(
            batches: EvaluationBatches = batches,
            members: list[Example] = members,
            bound: int = bound,
        ) -> Iterator[dict[str, Any]]:
            for batch in batches:
                names = [members[i].name for i in batch["index"]]
                shape = tuple(-(-side // patch_px) for side in batch["bucket_hw"])
                cams = [read_cams(cam_path(workdir, name), count).maps for name in names]
                yield batch | _rows(cams, names, present, bound, shape)
            skipped.extend(batches.skipped)

        yield members, with_cams()


def _rows(
    cams: Sequence[np.ndarray],
    names: Sequence[str],
    present: Present,
    bound: int,
    shape: tuple[int, ...],
) -> dict[str, np.ndarray]:
    """The CAMs (m, h, w) of a batch, padded to the grid `shape` of its bucket."""
    maps = np.zeros((len(names), bound, *shape), np.float32)
    grids = np.zeros((len(names), 2), np.int32)
    for row, stored in enumerate(cams):
        if stored.shape[1] > shape[0] or stored.shape[2] > shape[1]:
            raise ValueError(
                f"the CAMs of {names[row]} have {stored.shape[1:]} patches, more than its image; "
                f"{_REMEDY}"
            )
        maps[row, : len(stored), : stored.shape[1], : stored.shape[2]] = stored
        grids[row] = stored.shape[1:]
    classes, real = padded_classes(names, present, bound)
    return {"maps": maps, "grids": grids, "classes": classes, "real": real}
