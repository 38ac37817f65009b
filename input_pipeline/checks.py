"""What is wrong with a dataset on disk: everything found, not only the first.

Lists and folders are read once; then each picture and label map is opened, in parallel if wished.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from input_pipeline.datasets import Dataset
from input_pipeline.images import BadFile, image_size, read_image, read_label
from input_pipeline.layout import Part, files_below, listed_stems

Chunk = TypeVar("Chunk")
Made = TypeVar("Made")
# How chunks are worked on: `map`, or the same thing in several processes.
Run = Callable[[Callable[[Chunk], Made], Sequence[Chunk]], Iterable[Made]]
Pair = tuple[str | None, str | None]  # picture and label below the root; None: it is missing

CHUNK = 64  # files that a process takes at a time
_BEYOND = 256  # the histogram's last bin: ids that no 8-bit file can hold


@dataclass(frozen=True)
class Expected:
    """What a dataset's files must be.

    Attributes:
      record: folders, classes and label rule.
      counts: the splits to look at, each with the numbers of pictures that count as published.
      shares: (id, low, high): between what shares of all pixels an id that is no class may lie.
        Wide: they shall find labels of another rule, not other pictures.
      raw: ids that only the maps have from which the label files are made, and what those are.
      source: where the files come from, said when some are missing.
    """

    record: Dataset
    counts: tuple[tuple[str, tuple[int, ...]], ...]
    shares: tuple[tuple[int, float, float], ...] = ()
    raw: tuple[range, str] = (range(0), "")
    source: str = ""

    @property
    def classes(self) -> range:
        """The ids of the classes as the files hold them."""
        first = int(self.record.reduce_zero_label)
        return range(first, first + self.record.num_classes)

    @property
    def allowed(self) -> frozenset[int]:
        """Every id that a label file may hold."""
        none = {0} if self.record.reduce_zero_label else set()
        return frozenset((*self.classes, *none, self.record.ignore_label))


@dataclass(frozen=True)
class Problem:
    """One kind of fault: the files or names that have it, and what to do."""

    kind: str
    items: list[str]
    remedy: str


@dataclass
class Checked:
    """What `check` saw.

    Attributes:
      root: the dataset's own folder.
      pictures: split -> how many there are.
      labels: label maps that could be read.
      histogram: (257,) pixels of each id in them; the last bin is for ids above 255.
      problems: none if all is well.
    """

    root: Path
    pictures: dict[str, int]
    labels: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(_BEYOND + 1, np.int64))
    problems: list[Problem] = field(default_factory=list)

    def share(self, label: int) -> float:
        """The share of all pixels that have this id."""
        return float(self.histogram[label] / max(self.histogram.sum(), 1))


class _Faults(dict[str, list[str]]):
    """Kind of fault -> what has it, in the order of finding."""

    def add(self, kind: str, *items: str) -> None:
        if items:
            self.setdefault(kind, []).extend(items)


class _Seen(NamedTuple):
    """What the files of one chunk hold."""

    faults: list[tuple[str, str]]
    labels: int
    histogram: np.ndarray


def check(
    root: str | os.PathLike[str], expected: Expected, *, deep: bool = False, run: Run = map
) -> Checked:
    """Looks at every file of the expected splits.

    Args:
      deep: decode the pictures too; otherwise only their headers are read. Label maps always are.
      run: as `map`, for the chunks of files.
    """
    root = expected.record.layout.resolve(root)
    faults = _Faults()
    pairs, pictures = _find(root, expected, faults)
    checked = Checked(root, pictures)
    look = functools.partial(_look, root=root, expected=expected, deep=deep)
    for seen in run(look, [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]):
        for kind, item in seen.faults:
            faults.add(kind, item)
        checked.labels += seen.labels
        checked.histogram += seen.histogram
    if all(pictures[split] in published for split, published in expected.counts):
        _judge(checked, expected, faults)  # a part of the dataset may lack classes
    checked.problems = [
        Problem(kind, items, _remedy(kind, expected)) for kind, items in faults.items()
    ]
    return checked


def _find(root: Path, expected: Expected, faults: _Faults) -> tuple[list[Pair], dict[str, int]]:
    """The files of all splits, and how many pictures each split has."""

    @functools.cache
    def files(folder: str) -> set[str] | None:
        if (root / folder).is_dir():
            return files_below(root / folder)
        faults.add("missing folder", folder)
        return None

    pairs: list[Pair] = []
    names: dict[str, set[str]] = {}
    for split, published in expected.counts:
        stems: list[str] = []
        for part in expected.record.layout.split(split).parts:
            stems += _find_part(root, part, expected, files, faults, pairs)
        names[split] = set(stems)
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
    return list(dict.fromkeys(pairs)), {split: len(found) for split, found in names.items()}


def _find_part(
    root: Path,
    part: Part,
    expected: Expected,
    files: Callable[[str], set[str] | None],
    faults: _Faults,
    pairs: list[Pair],
) -> list[str]:
    """Appends the part's files to `pairs`; returns the stems of its pictures."""
    layout = expected.record.layout
    assert part.labels is not None
    images, labels = files(part.images), files(part.labels)
    listed = part.stems
    if listed is None and part.may_list and (root / part.may_list).is_file():
        listed = part.may_list
    if listed is not None:
        try:
            stems = wanted = listed_stems(root / listed)
        except (OSError, UnicodeDecodeError):
            faults.add("missing list", listed)
            return []
    else:
        stems = sorted(_stems(images, layout.image_suffix))
        # A label without picture is a picture that got lost.
        wanted = sorted({*stems, *_stems(labels, layout.label_suffix)}) if images else stems
    for stem in wanted:
        image, label = stem + layout.image_suffix, stem + layout.label_suffix
        pair: list[str | None] = []
        for kind, folder, file, there in (
            ("missing picture", part.images, image, images),
            ("missing label", part.labels, label, labels),
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
    histogram = np.zeros(_BEYOND + 1, np.int64)
    labels = 0
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
        counts = np.bincount(
            np.minimum(ids.view(np.uint32), _BEYOND).ravel(), minlength=_BEYOND + 1
        )
        histogram += counts
        wrong = [value for value in np.flatnonzero(counts) if value not in expected.allowed]
        if wrong:
            if counts[_BEYOND]:
                wrong = [*wrong[:-1], *np.unique(ids[(ids < 0) | (ids >= _BEYOND)])]
            raw = all(value in expected.raw[0] for value in wrong)
            shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            faults.append(("raw ids" if raw else "ids out of range", f"{label}: {shown}"))
    return _Seen(faults, labels, histogram)


def _is_colour(path: Path) -> bool:
    with contextlib.suppress(Exception), Image.open(path) as image:
        return len(image.getbands()) > 1
    return False


def _reason(error: BadFile, path: Path) -> str:
    """The error without the file's name, said already, and without the remedy, said below."""
    return str(error).removeprefix(f"{path}: ").partition("; ")[0]


def _judge(checked: Checked, expected: Expected, faults: _Faults) -> None:
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


def _remedy(kind: str, expected: Expected) -> str:
    none = [str(label) for label in sorted(expected.allowed - set(expected.classes))]
    classes = f"{expected.classes[0]} to {expected.classes[-1]}"
    again = "Unpack these files again; if that doesn't help, download them again."
    return {
        "listed twice": "Take the published list.",
        "in two splits": "Take the published lists; training must not see the pictures of val.",
        "number of pictures": "Scores on other pictures are not comparable. " + expected.source,
        "unreadable picture": again,
        "unreadable label": again,
        "colour label": "Labels must be class ids in a grey or palette PNG; unpack the original "
        "ones again, and don't save them through a tool that turns palettes into colours.",
        "sizes differ": "Unpack pictures and labels of the same release; resize neither.",
        "ids out of range": f"Classes are {classes}, and {' and '.join(none)} no class. Is it "
        "this dataset? Otherwise unpack or convert the labels again.",
        "raw ids": f"These look like {expected.raw[1]}, and others may, unnoticed; delete the "
        "label files of this kind and let --write make them again.",
        "class without a pixel": "These are labels of another release or rule; unpack or convert "
        "them again.",
        "implausible share of pixels": "These are labels of another release or rule; unpack or "
        "convert them again.",
    }.get(kind, expected.source)
