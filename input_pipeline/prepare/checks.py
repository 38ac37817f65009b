"""Checks a dataset on disk and collects all problems, not only the first.

Lists and folders are read once; then each image and label map is opened, possibly in parallel.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.datasets.image_labels import image_labels
from input_pipeline.datasets.images import BadFile, image_size, open_image, read_image, read_label
from input_pipeline.datasets.layout import Example, Part, files_below, find_names
from input_pipeline.prepare.expected import BEYOND, Checked, Expected, Faults
from input_pipeline.prepare.workers import CHUNK, Run
from input_pipeline.text_lists import BadList
from input_pipeline.walk import open_regular

Pair = tuple[str | None, str | None]  # image and label file below the root; None: missing


class _Listed(NamedTuple):
    """What lists and folders name: stems of each split, and its label files below the root."""

    stems: dict[str, list[str]]
    labels: dict[str, set[str]]


class _ChunkResult(NamedTuple):
    """Contents of the files of one chunk.

    Attributes:
      faults: (kind, item).
      labels: number of readable label maps.
      histogram: see `Checked`.
      present: label file -> the ids below 256 in it, as bytes.
    """

    faults: list[tuple[str, str]]
    labels: int
    histogram: np.ndarray
    present: dict[str, bytes]


def check(
    root: str | os.PathLike[str], expected: Expected, *, deep: bool = False, run: Run = map
) -> Checked:
    """Checks all files of the expected splits.

    Args:
      deep: decode images; otherwise only their headers are read. Label maps are always decoded.
      run: a function like `map` for the chunks of files.
    """
    root = expected.record.layout.resolve(root)
    faults = Faults()
    pairs, listed = _find_files(root, expected, faults)
    checked = Checked(root, {split: len(set(stems)) for split, stems in listed.stems.items()})
    present: dict[str, bytes] = {}
    check_chunk = functools.partial(_check_chunk, root=root, expected=expected, deep=deep)
    chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
    for result in run(check_chunk, chunks):
        for kind, item in result.faults:
            faults.add(kind, item)
        checked.labels += result.labels
        checked.histogram += result.histogram
        present.update(result.present)
    if all(checked.images[split] in published for split, published in expected.counts):
        _check_labels(checked, expected, faults)  # not of an incomplete dataset
        _check_splits(listed, present, expected, faults)
    if expected.image_labels:
        _check_image_labels(root, listed, expected, faults)
    checked.problems = faults.problems(expected)
    return checked


def _find_files(root: Path, expected: Expected, faults: Faults) -> tuple[list[Pair], _Listed]:
    """The files of all splits, each pair once, and what each split lists."""

    @functools.cache
    def files(folder: str) -> set[str] | None:
        if (root / folder).is_dir():
            return files_below(root / folder)
        faults.add("missing folder", folder)
        return None

    pairs: list[Pair] = []
    names: dict[str, set[str]] = {}
    listed = _Listed({}, {})
    for split, published in expected.counts:
        stems: list[str] = []
        first = len(pairs)
        for part in expected.record.layout.split(split).parts:
            stems += _find_part_files(root, part, expected, files, faults, pairs)
        names[split] = set(stems)
        listed.stems[split] = stems
        listed.labels[split] = {label for _, label in pairs[first:] if label is not None}
        twice = sorted(stem for stem, count in Counter(stems).items() if count > 1)
        faults.add("listed twice", *(f"{stem} ({split})" for stem in twice))
        if len(names[split]) not in published:
            counts = " or ".join(str(number) for number in published)
            faults.add(
                "number of images", f"{split} has {len(names[split])}, the published one {counts}"
            )
    for one, other in combinations(names, 2):
        both = sorted(names[one] & names[other])
        faults.add("in two splits", *(f"{stem} ({one}, {other})" for stem in both))
    return list(dict.fromkeys(pairs)), listed


def _find_part_files(
    root: Path,
    part: Part,
    expected: Expected,
    files: Callable[[str], set[str] | None],
    faults: Faults,
    pairs: list[Pair],
) -> list[str]:
    """Appends the part's files to `pairs`; returns the stems of its images."""
    layout = expected.record.layout
    image_folder = layout.images_of(root, part)
    label_folder, prefix = layout.labels_of(root, part)
    images, labels = files(image_folder), files(label_folder)
    listed = layout.list_of(root, part)
    if listed is not None:
        try:
            stems = pair_stems = layout.stems(root, part, listed)
        except FileNotFoundError:
            faults.add("missing list", listed)
            return []
        except (BadList, OSError) as error:
            faults.add("unreadable list", str(error).removeprefix(f"{root}/"))
            return []
        except ValueError as error:
            faults.add("list of another folder", str(error).partition("; ")[0])
            return []
    else:
        stems = sorted(_stems(images, layout.image_suffix))
        # A label without an image means that the image is missing.
        pair_stems = sorted({*stems, *_stems(labels, layout.label_suffix)}) if images else stems
    files_of: list[list[str | None]] = []
    for kind, folder, existing, expected_names in (
        ("missing image", image_folder, images, [f"{s}{layout.image_suffix}" for s in pair_stems]),
        (
            "missing label",
            label_folder,
            labels,
            [f"{s.removeprefix(prefix)}{layout.label_suffix}" for s in pair_stems],
        ),
    ):
        found = list(find_names(existing or set(), root / folder, expected_names))
        files_of.append([file and f"{folder}/{file}" for _, file in found])
        if existing is not None:  # a missing folder is reported once
            faults.add(kind, *(f"{folder}/{name}" for name, file in found if file is None))
    pairs += [pair for pair in zip(*files_of, strict=True) if any(pair)]
    return stems


def _stems(files: set[str] | None, suffix: str) -> list[str]:
    return [file.removesuffix(suffix) for file in files or () if file.endswith(suffix)]


def _check_chunk(pairs: Sequence[Pair], root: Path, expected: Expected, deep: bool) -> _ChunkResult:
    """Opens the files of a chunk; runs in other processes."""
    faults: list[tuple[str, str]] = []
    histogram = np.zeros(BEYOND + 1, np.int64)
    labels = 0
    present = {}
    for image, label in pairs:
        size: tuple[int, ...] | None = None
        if image is not None:
            try:
                size = read_image(root / image).shape[:2] if deep else image_size(root / image)
            except BadFile as error:
                faults.append(("unreadable image", f"{image}: {_reason(error, root / image)}"))
        if label is None:
            continue
        if _is_colour(root / label):
            faults.append(("colour label", label))
            continue
        try:
            ids = read_label(root / label)
        except BadFile as error:
            faults.append(("unreadable label", f"{label}: {_reason(error, root / label)}"))
            continue
        labels += 1
        if size is not None and ids.shape != size:
            sizes = f"{ids.shape[0]} x {ids.shape[1]}, the image {size[0]} x {size[1]}"
            faults.append(("sizes differ", f"{label}: {sizes}"))
        # As unsigned integers negative ids are large ones.
        counts = np.bincount(np.minimum(ids.view(np.uint32), BEYOND).ravel(), minlength=BEYOND + 1)
        histogram += counts
        present[label] = np.flatnonzero(counts[:BEYOND]).astype(np.uint8).tobytes()
        wrong = [value for value in np.flatnonzero(counts) if value not in expected.allowed]
        if wrong:
            if counts[BEYOND]:
                wrong = [*wrong[:-1], *np.unique(ids[(ids < 0) | (ids >= BEYOND)])]
            raw = all(value in expected.raw[0] for value in wrong)
            shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            faults.append(("raw ids" if raw else "ids out of range", f"{label}: {shown}"))
    return _ChunkResult(faults, labels, histogram, present)


def _is_colour(path: Path) -> bool:
    with contextlib.suppress(Exception), open_regular(path) as file, open_image(file) as image:
        return len(image.getbands()) > 1
    return False


def _reason(error: BadFile, path: Path) -> str:
    """The error without file name and remedy, which the report gives elsewhere."""
    return str(error).removeprefix(f"{path}: ").partition("; ")[0]


def _check_labels(checked: Checked, expected: Expected, faults: Faults) -> None:
    """Checks that all classes occur and that shares of pixels are plausible."""
    if not checked.labels:
        return
    for label, name in zip(expected.classes, expected.record.class_names, strict=True):
        if not checked.histogram[label]:
            faults.add("class without a pixel", f"{label} ({name})")
    for label, low, high in expected.shares:
        share = checked.share(label)
        if not low <= share <= high:
            faults.add(
                "implausible share of pixels",
                f"id {label} has {share:.1%}, expected {low:.1%} to {high:.1%}",
            )


def _check_splits(
    listed: _Listed, present: dict[str, bytes], expected: Expected, faults: Faults
) -> None:
    """Checks that each split has the published images, and these the published classes."""
    for split, published in expected.lists:
        names = "\n".join(sorted(listed.stems[split])).encode()
        if hashlib.sha1(names, usedforsecurity=False).hexdigest() != published:
            faults.add("other images", f"{split} has as many as the published one, but others")
    for split, numbers in expected.images_per_class:
        counts = Counter(i for label in listed.labels[split] for i in present.get(label, b""))
        for label, number in zip(expected.foreground, numbers, strict=True):
            if counts[label] != number:
                name = expected.record.class_names[label - expected.classes[0]]
                faults.add(
                    "images with a class", f"{split}: {counts[label]} with {name}, not {number}"
                )


def _check_image_labels(root: Path, listed: _Listed, expected: Expected, faults: Faults) -> None:
    """Checks that all listed images have image labels."""
    done: set[str] = set()
    for split, stems in listed.stems.items():
        new = [stem for stem in dict.fromkeys(stems) if stem not in done]
        done.update(new)
        examples = [Example(stem, root / stem, None) for stem in new]
        if not examples:
            continue
        try:
            _, problems = image_labels(expected.record, root, split, examples, on_bad="skip")
            faults.add("no image labels", *(f"{name}: {reason}" for name, reason in problems))
        except (BadFile, FileNotFoundError) as error:
            faults.add("no image labels", f"{split}: {str(error).partition('; ')[0]}")
