"""Makes label files from published raw maps, by a table of class ids.

Files are written whole or not at all, and whole files are kept, so that a stopped run can resume.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.datasets.class_sets import (
    coco_stuff_27_labels,
    coco_stuff_171_labels,
    pascal_context_raw_ids,
)
from input_pipeline.datasets.images import BadLabel, read_label
from input_pipeline.datasets.listing import files_below
from input_pipeline.prepare import mat_files
from input_pipeline.prepare.workers import CHUNK, Run
from input_pipeline.text_lists import one_line, read_list
from input_pipeline.walk import open_regular
from input_pipeline.writing import is_whole_png, write_atomic

UNKNOWN = -1  # in a table: an id that must not occur in raw maps

# Cityscapes' label ids by train id.
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_IDS = 34
_COCO_STUFF_IDS = 182
_THINGS = 80
_CONTEXT_IDS = 460
_VOC_IDS = 21


class Job(NamedTuple):
    """A label file to make.

    Attributes:
      source: what it is made from: path of a raw map, or an `AnnotatedImage` of COCO.
      target: path of the label file.
      exists: there is such a file already, whole or not.
    """

    source: Any
    target: Path
    exists: bool


@dataclass
class Converted:
    """Numbers of label files that were written and kept, and errors of the other sources."""

    written: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)


def coco_stuff_171_table() -> np.ndarray:
    """(256,) raw id of COCO-Stuff -> 0..170; unlabelled and ids without a class become 255."""
    return _coco_stuff_table(coco_stuff_171_labels())


def coco_stuff_27_table() -> np.ndarray:
    """(256,) raw id of COCO-Stuff -> super-class 0..26; unlabelled stays 255."""
    return _coco_stuff_table(coco_stuff_27_labels())


def coco_object_table() -> np.ndarray:
    """(256,) raw id of COCO-Stuff -> 1..80 of the things; stuff and unlabelled pixels become 0.

    Spec readouts, section 9: no pixel is ignored.
    """
    labels = coco_stuff_171_labels().astype(np.int16)  # things are 0..79
    return _coco_stuff_table(np.where(labels < _THINGS, labels + 1, 0))


def _coco_stuff_table(labels: np.ndarray) -> np.ndarray:
    table = labels.astype(np.int16)
    table[_COCO_STUFF_IDS:255] = UNKNOWN
    return table


def cityscapes_table() -> np.ndarray:
    """(256,) label id of Cityscapes -> train id 0..18; the others of the 34 ids become 255."""
    ignored = dict.fromkeys((*range(_CITYSCAPES_IDS), 255), 255)  # id -1 is 255 in the files
    return _table(256, {**ignored, **{raw: i for i, raw in enumerate(_CITYSCAPES)}})


def pascal_context_table() -> np.ndarray:
    """(460,) raw id of Pascal Context -> 1..59, or 0 for background and the 400 rare classes."""
    table = np.zeros(_CONTEXT_IDS, np.int16)
    for label, raw in enumerate(pascal_context_raw_ids()):
        table[raw] = label
    return table


def voc_table() -> np.ndarray:
    """(256,) ids of VOC and SBD, unchanged."""
    return _table(256, {**{i: i for i in range(_VOC_IDS)}, 255: 255})


def _table(size: int, entries: dict[int, int]) -> np.ndarray:
    table = np.full(size, UNKNOWN, np.int16)
    table[list(entries)] = list(entries.values())
    return table


def renamed_jobs(
    root: Path, folders: Iterable[str], raw_suffix: str, label_suffix: str
) -> list[Job]:
    """Jobs for raw maps in the folders of the label files, which differ in their suffixes."""
    jobs = []
    for folder in folders:
        files = files_below(root / folder)
        for file in sorted(files):
            if file.endswith(raw_suffix) and "TrainIds" not in file:
                label = file.removesuffix(raw_suffix) + label_suffix
                jobs.append(Job(root / folder / file, root / folder / label, label in files))
    return jobs


def pascal_context_jobs(root: Path, source: Path) -> list[Job]:
    """Jobs for a folder of raw maps, <id>.mat (with LabelMap) or <id>.png.

    The published labels are the masks that the Detail API draws from trainval_merged.json. The .mat
    files of the older release have the same ids; whether all pixels are equal is not known.
    """
    folder = root / "SegmentationClassContext"
    existing = files_below(folder)
    sources = {
        file.rpartition(".")[0]: source / file
        for file in sorted(files_below(source), reverse=True)  # .mat takes precedence
        if file.endswith((".mat", ".png"))
    }
    return [
        Job(sources[stem], folder / f"{stem}.png", f"{stem}.png" in existing)
        for stem in sorted(sources)
    ]


def sbd_jobs(root: Path, source: Path) -> list[Job]:
    """Jobs for SBD's folder with `cls/<id>.mat` (with GTcls) and lists, and for VOC's own labels.

    SegmentationClassAug gets the labels of both; also writes aug.txt and train_aug.txt if missing.

    Raises:
      ValueError: a list of SBD or of VOC is missing.
      CannotWrite: a list cannot be written.
    """
    lists = root / "ImageSets" / "Segmentation"
    train, val = _train_and_val(lists)
    if not (lists / "aug.txt").is_file():
        # The published order is that of a Python set, which differs between runs.
        sbd = {stem for stems in _train_and_val(source) for stem in stems}
        write_list(lists / "aug.txt", sorted(sbd - {*train, *val}))
    aug = _stems(lists / "aug.txt")
    write_list(lists / "train_aug.txt", sorted({*aug, *train}))
    sources = {stem: root / "SegmentationClass" / f"{stem}.png" for stem in (*train, *val)}
    sources.update((stem, source / "cls" / f"{stem}.mat") for stem in aug)
    folder = root / "SegmentationClassAug"
    existing = files_below(folder)
    return [
        Job(file, folder / f"{stem}.png", f"{stem}.png" in existing)
        for stem, file in sources.items()
    ]


def _train_and_val(folder: Path) -> list[list[str]]:
    try:
        return [_stems(folder / f"{name}.txt") for name in ("train", "val")]
    except FileNotFoundError as error:
        raise ValueError(
            f"no list {error.filename}; aug.txt is SBD's train.txt and val.txt without VOC's. "
            f"Unpack both datasets completely."
        ) from error


def _stems(path: Path) -> list[str]:
    """The stems of a split list, one per line."""
    # VOC's per-class lists have a second column.
    return [words[0].lstrip("/") for words in read_list(path)]


def write_list(path: Path, lines: Iterable[str]) -> None:
    """Writes a split list unless it exists: a published one may have another order.

    Raises:
      CannotWrite: the list cannot be written.
    """
    if not path.is_file():
        content = "".join(f"{line}\n" for line in lines).encode()
        write_atomic(path, lambda file: file.write(content), sync=False)


LabelOf = Callable[[Any], np.ndarray]


def by_table(table: np.ndarray) -> LabelOf:
    """A function for `convert`: path of a raw map -> label map (h, w) uint8, by the table."""
    return functools.partial(_translated, table=table)


def _translated(path: Path, table: np.ndarray) -> np.ndarray:
    return translate(read_raw(path), table, path)


def convert(jobs: Sequence[Job], label_of: LabelOf, *, run: Run = map) -> Converted:
    """Makes the label files; sources that cannot be used are named in `failures`.

    Args:
      label_of: source of a job -> label map (h, w) uint8; raises BadLabel.
      run: a function like `map` for the chunks of jobs.

    Raises:
      CannotWrite: a label file cannot be written.
    """
    total = Converted()
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    for chunk in run(functools.partial(_convert, label_of=label_of), chunks):
        total.written += chunk.written
        total.kept += chunk.kept
        total.failures += chunk.failures
    return total


def _convert(jobs: Sequence[Job], label_of: LabelOf) -> Converted:
    """Converts a chunk; runs in other processes."""
    total = Converted()
    for job in jobs:
        if job.exists and is_whole_png(job.target):
            total.kept += 1
            continue
        try:
            label = label_of(job.source)
        except BadLabel as error:
            total.failures.append(str(error).partition("; ")[0])  # the report gives the remedy once
            continue
        write_atomic(job.target, functools.partial(_save_png, label), sync=False)
        total.written += 1
    return total


def _save_png(label: np.ndarray, file: BinaryIO) -> None:
    Image.fromarray(label).save(file, "PNG")


def translate(ids: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """Ids (h, w) of a raw map -> label map (h, w) uint8.

    Raises:
      BadLabel: an id that is not in the table; names `path`.
    """
    in_table = (ids >= 0) & (ids < len(table))
    labels = np.where(in_table, table[np.where(in_table, ids, 0)], UNKNOWN)
    unknown = ids[labels == UNKNOWN]
    if unknown.size:
        raise BadLabel(
            f"{path}: id {int(unknown[0])} at {unknown.size} pixels is not a raw id of this "
            f"dataset; is the map of another dataset?"
        )
    return labels.astype(np.uint8)


def read_raw(path: Path) -> np.ndarray:
    """Ids (h, w) of a PNG, or of a .mat file with LabelMap (Pascal Context) or GTcls (SBD).

    Raises:
      BadLabel: missing, damaged, or without ids.
    """
    if path.suffix != ".mat":
        return read_label(path)
    try:
        with open_regular(path) as file:
            ids = mat_files.read_ids(file.read())
        whole = np.isfinite(ids) & (np.abs(ids.astype(np.float64)) < 2**31)
        if not whole.all() or (ids.astype(np.int32) != ids).any():
            raise ValueError(f"its ids of type {ids.dtype} are no whole numbers")
    except FileNotFoundError as error:
        raise BadLabel(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise BadLabel(f"{path}: cannot read the ids ({one_line(error)})") from error
    return ids.astype(np.int32)
