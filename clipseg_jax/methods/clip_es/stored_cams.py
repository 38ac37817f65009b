"""CAMs between stages: one small file for each image, and batches of images with their CAMs.

A file `<name>.npz` holds `classes` (m,) int32, ids of the image labels in their order, and `maps`
(m, hp, wp) float32, the refined CAMs scaled to [0, 1] at the patches' size. What the published
code saves at full size is these maps upsampled, which is cheap on a device.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from clipseg_jax.core.files import write_atomic
from clipseg_jax.core.npy import parse_array
from clipseg_jax.stages.data import readable_batches
from clipseg_jax.stages.image_classes import Present, by_class_count, padded_classes
from input_pipeline.batches.evaluation import EvaluationBatches, Skipped
from input_pipeline.datasets.layout import Example
from input_pipeline.walk import open_regular


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


def read_cams(path: Path) -> StoredCAM:
    """Reads what `write_cams` wrote.

    Raises:
      ValueError: a damaged file, or CAMs that are not finite.
      OSError: no file, or one that cannot be read.
    """
    with open_regular(path) as file:
        data = file.read()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            classes, maps = (_member(archive, name, len(data)) for name in ("classes", "maps"))
        if maps.ndim != 3 or classes.shape != maps.shape[:1] or 0 in maps.shape:
            raise ValueError(f"maps {maps.shape} for classes {classes.shape}")
        if classes.dtype != np.int32 or maps.dtype != np.float32:
            raise ValueError(f"maps of {maps.dtype} for classes of {classes.dtype}")
        if classes.min() < 0 or not np.isfinite(maps).all():
            raise ValueError("a class below 0, or a value that is not finite")
    # zipfile raises more than a dozen kinds of errors for damaged archives.
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason[:200] if reason.isprintable() else ascii(reason[:200])
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {reason}); delete it and "
            "cams.done.json, and run the stage `cams` again: it makes what is missing"
        ) from error
    return StoredCAM(classes, maps)


def _member(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    """An array of an archive of `size` bytes, in which nothing is compressed."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
        raise ValueError(f"{name} is compressed, or larger than the file")
    return parse_array(archive.read(info))


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
    stored = {e.name: read_cams(cam_path(workdir, e.name)).classes for e in examples}
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
                yield batch | _rows(workdir, names, present, bound, batch["bucket_hw"], patch_px)
            skipped.extend(batches.skipped)

        yield members, with_cams()


def _rows(
    workdir: Path,
    names: Sequence[str],
    present: Present,
    bound: int,
    bucket_hw: tuple[int, int],
    patch_px: int,
) -> dict[str, np.ndarray]:
    """The CAMs of a batch, padded to the grid of its bucket."""
    shape = tuple(-(-side // patch_px) for side in bucket_hw)
    maps = np.zeros((len(names), bound, *shape), np.float32)
    grids = np.zeros((len(names), 2), np.int32)
    for row, name in enumerate(names):
        stored = read_cams(cam_path(workdir, name)).maps
        maps[row, : len(stored), : stored.shape[1], : stored.shape[2]] = stored
        grids[row] = stored.shape[1:]
    classes, real = padded_classes(names, present, bound)
    return {"maps": maps, "grids": grids, "classes": classes, "real": real}
