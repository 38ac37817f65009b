"""What a dataset's files must be, and what to say of those that aren't."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from input_pipeline.datasets.catalog import Dataset

BEYOND = 256  # the histogram's last bin: ids that no 8-bit file can hold


@dataclass(frozen=True)
class Expected:
    """What a dataset's files must be.

    Attributes:
      record: folders, classes and label rule.
      counts: the splits to look at, each with the numbers of pictures that count as published.
      shares: (id, low, high): between what shares of all pixels background and ignored ids may lie.
        Wide: they shall find labels of another rule, not other pictures.
      raw: ids that only the maps have from which the label files are made, and what those are.
      source: where the files come from, said when some are missing.
      lists: split -> SHA-1 of its sorted stems, joined by newlines, as pairs.
      pictures_of: split -> in how many of its label maps each class without the background is.
      image_labels: every picture must have some.
    """

    record: Dataset
    counts: tuple[tuple[str, tuple[int, ...]], ...]
    shares: tuple[tuple[int, float, float], ...] = ()
    raw: tuple[range, str] = (range(0), "")
    source: str = ""
    lists: tuple[tuple[str, str], ...] = ()
    pictures_of: tuple[tuple[str, tuple[int, ...]], ...] = ()
    image_labels: bool = False

    @property
    def classes(self) -> range:
        """The ids of the classes as the files hold them."""
        first = int(self.record.reduce_zero_label)
        return range(first, first + self.record.num_classes)

    @property
    def foreground(self) -> range:
        """The ids of the classes but for the background."""
        return self.classes[int(self.record.background) :]

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
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BEYOND + 1, np.int64))
    problems: list[Problem] = field(default_factory=list)

    def share(self, label: int) -> float:
        """The share of all pixels that have this id."""
        return float(self.histogram[label] / max(self.histogram.sum(), 1))


class Faults(dict[str, list[str]]):
    """Kind of fault -> what has it, in the order of finding."""

    def add(self, kind: str, *items: str) -> None:
        """Notes what has a fault; nothing if there are none."""
        if items:
            self.setdefault(kind, []).extend(items)

    def problems(self, expected: Expected) -> list[Problem]:
        """The faults with what to do about each kind."""
        return [Problem(kind, items, _remedy(kind, expected)) for kind, items in self.items()]


def _remedy(kind: str, expected: Expected) -> str:
    none = [str(label) for label in sorted(expected.allowed - set(expected.classes))]
    classes = f"{expected.classes[0]} to {expected.classes[-1]}"
    again = "Unpack these files again; if that doesn't help, download them again."
    other = "These are labels of another release or rule; unpack or convert them again."
    return {
        "listed twice": "Take the published list.",
        "in two splits": "Take the published lists; training must not see the pictures of val.",
        "number of pictures": "Scores on other pictures are not comparable. " + expected.source,
        "other pictures": "Scores on other pictures are not comparable. Take the published list, "
        "or delete this one and let --write make it.",
        "list of another folder": "Take a list of stems, one a line.",
        "unreadable picture": again,
        "unreadable label": again,
        "colour label": "Labels must be class ids in a grey or palette PNG; unpack the original "
        "ones again, and don't save them through a tool that turns palettes into colours.",
        "sizes differ": "Unpack pictures and labels of the same release; resize neither.",
        "ids out of range": f"Classes are {classes}, and {' and '.join(none)} no class. Is it "
        "this dataset? Otherwise unpack or convert the labels again.",
        "raw ids": f"These look like {expected.raw[1]}, and others may, unnoticed; delete the "
        "label files of this kind and let --write make them again.",
        "no image labels": "Training from image labels leaves these out. " + again,
        "class without a pixel": other,
        "pictures with a class": other,
        "implausible share of pixels": other,
    }.get(kind, expected.source)
