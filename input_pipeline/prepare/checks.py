"""What is wrong with a dataset on disk: everything found, not only the first.

Lists and folders are read once; then each picture and label map is opened, in parallel if wished.
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
from PIL import Image

from input_pipeline.datasets.image_labels import image_labels
from input_pipeline.datasets.images import BadFile, image_size, read_image, read_label
from input_pipeline.datasets.layout import Example, Part, files_below
from input_pipeline.prepare.expected import BEYOND, Checked, Expected, Faults
from input_pipeline.prepare.workers import CHUNK, Run

Pair = tuple[str | None, str | None]  # picture and label below the root; None: it is missing


class _Found(NamedTuple):
    """What the lists and folders say: a split's stems, and its label files below the root."""

    stems: dict[str, list[str]]
    labels: dict[str, set[str]]


class _Seen(NamedTuple):
    """What the files of one chunk hold; `present`: label file -> the ids below 256 in it."""

    faults: list[tuple[str, str]]
    labels: int
    histogram: np.ndarray
    present: dict[str, bytes]


def check(
    root: str | os.PathLike[str], expected: Expected, *, deep: bool = False, run: Run = map
) -> Checked:
    """Looks at every file of the expected splits.

    Args:
      deep: decode the pictures too; otherwise only their headers are read. Label maps always are.
      run: as `map`, for the chunks of files.
    """
    root = expected.record.layout.resolve(root)
    faults = Faults()
    pairs, found = _find(root, expected, faults)
    checked = Checked(root, {split: len(set(stems)) for split, stems in found.stems.items()})
    present: dict[str, bytes] = {}
    look = functools.partial(_look, root=root, expected=expected, deep=deep)
    for seen in run(look, [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]):
        for kind, item in seen.faults:
            faults.add(kind, item)
        checked.labels += seen.labels
        checked.histogram += seen.histogram
        present.update(seen.present)
    if all(checked.pictures[split] in published for split, published in expected.counts):
        _judge(checked, expected, faults)  # a part of the dataset may lack classes
        _judge_splits(found, present, expected, faults)
    if expected.image_labels:
        _find_image_labels(root, found, expected, faults)
    checked.problems = faults.problems(expected)
    return checked


def _find(root: Path, expected: Expected, faults: Faults) -> tuple[list[Pair], _Found]:
    """The files of all splits, each pair once, and what each split has."""

    @functools.cache
    def files(folder: str) -> set[str] | None:
        if (root / folder).is_dir():
            return files_below(root / folder)
        faults.add("missing folder", folder)
        return None

    pairs: list[Pair] = []
    names: dict[str, set[str]] = {}
    found = _Found({}, {})
    for split, published in expected.counts:
        stems: list[str] = []
        first = len(pairs)
        for part in expected.record.layout.split(split).parts:
            stems += _find_part(root, part, expected, files, faults, pairs)
        names[split] = set(stems)
        found.stems[split] = stems
        found.labels[split] = {label for _, label in pairs[first:] if label is not None}
        again = sorted(stem for stem, times in Counter(stems).items() if times > 1)
        faults.add("listed twice", *(f"{stem} ({split})" for stem in again))
        if len(names[split]) not in published:
            known = " or ".join(str(number) for number in published)
            faults.add(
                "number of pictures", f"{split} has {len(names[split])}, the published one {known}"
            )
    for one, other in combinations(names, 2):
        both = sorted(names[one] & names[other])
        faults.add("in two splits", *(f"{stem} ({one}, {other})" for stem in both))
    return list(dict.fromkeys(pairs)), found


def _find_part(
    root: Path,
    part: Part,
    expected: Expected,
    files: Callable[[str], set[str] | None],
    faults: Faults,
    pairs: list[Pair],
) -> list[str]:
    """Appends the part's files to `pairs`; returns the stems of its pictures."""
    layout = expected.record.layout
    image_folder = layout.images_of(root, part)
    label_folder, lacks = layout.labels_of(root, part)
    images, labels = files(image_folder), files(label_folder)
    listed = layout.list_of(root, part)
    if listed is not None:
        try:
            stems = wanted = layout.stems(root, part, listed)
        except (OSError, UnicodeDecodeError):
            faults.add("missing list", listed)
            return []
        except ValueError as error:
            faults.add("list of another folder", str(error).partition("; ")[0])
            return []
    else:
        stems = sorted(_stems(images, layout.image_suffix))
        # A label without picture is a picture that got lost.
        wanted = sorted({*stems, *_stems(labels, layout.label_suffix)}) if images else stems
    for stem in wanted:
        image = stem + layout.image_suffix
        label = stem.removeprefix(lacks) + layout.label_suffix
        pair: list[str | None] = []
        for kind, folder, file, there in (
            ("missing picture", image_folder, image, images),
            ("missing label", label_folder, label, labels),
        ):
            found = there is not None and file in there
            pair.append(f"{folder}/{file}" if found else None)
            if not found and there is not None:  # a missing folder is told once
                faults.add(kind, f"{folder}/{file}")
        if any(pair):
            pairs.append((pair[0], pair[1]))
    return stems


def _stems(files: set[str] | None, suffix: str) -> list[str]:
    return [file.removesuffix(suffix) for file in files or () if file.endswith(suffix)]


def _look(pairs: Sequence[Pair], root: Path, expected: Expected, deep: bool) -> _Seen:
    """Opens the files; runs in other processes."""
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
                faults.append(("unreadable picture", f"{image}: {_reason(error, root / image)}"))
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
            sizes = f"{ids.shape[0]} x {ids.shape[1]}, the picture {size[0]} x {size[1]}"
            faults.append(("sizes differ", f"{label}: {sizes}"))
        # Seen unsigned, negative ids are large ones.
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
    return _Seen(faults, labels, histogram, present)


def _is_colour(path: Path) -> bool:
    with contextlib.suppress(Exception), Image.open(path) as image:
        return len(image.getbands()) > 1
    return False


def _reason(error: BadFile, path: Path) -> str:
    """The error without the file's name, said already, and without the remedy, said below."""
    return str(error).removeprefix(f"{path}: ").partition("; ")[0]


def _judge(checked: Checked, expected: Expected, faults: Faults) -> None:
    """Whether the labels as a whole look like the dataset's."""
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
                f"id {label} has {share:.1%}, and should have {low:.1%} to {high:.1%}",
            )


def _judge_splits(
    found: _Found, present: dict[str, bytes], expected: Expected, faults: Faults
) -> None:
    """Whether each split has the published pictures, and they the published classes."""
    for split, published in expected.lists:
        names = "\n".join(sorted(found.stems[split])).encode()
        if hashlib.sha1(names, usedforsecurity=False).hexdigest() != published:
            faults.add("other pictures", f"{split} has as many as the published one, but others")
    for split, numbers in expected.pictures_of:
        have = Counter(each for label in found.labels[split] for each in present.get(label, b""))
        for label, number in zip(expected.foreground, numbers, strict=True):
            if have[label] != number:
                name = expected.record.class_names[label - expected.classes[0]]
                faults.add(
                    "pictures with a class", f"{split}: {have[label]} with {name}, not {number}"
                )


def _find_image_labels(root: Path, found: _Found, expected: Expected, faults: Faults) -> None:
    """Whether the pictures have image labels; those of missing lists are complained of already."""
    seen: set[str] = set()
    for split, stems in found.stems.items():
        new = [stem for stem in dict.fromkeys(stems) if stem not in seen]
        seen.update(new)
        examples = [Example(stem, root / stem, None) for stem in new]
        if not examples:
            continue
        try:
            made = image_labels(expected.record, root, split, examples, on_bad="skip")
            faults.add("no image labels", *(f"{name}: {why}" for name, why in made.problems))
        except (BadFile, FileNotFoundError) as error:
            faults.add("no image labels", f"{split}: {str(error).partition('; ')[0]}")
