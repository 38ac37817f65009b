"""Requirements on a dataset's files, and the report of a check against them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from input_pipeline.datasets.catalog import Dataset

BEYOND = 256  # the histogram's last bin, for ids that do not fit into 8 bits


@dataclass(frozen=True)
class Expected:
    """Requirements on a dataset's files.

    Attributes:
      record: folders, classes and label rule.
      counts: (split, published numbers of images) of the splits to check.
      shares: (id, low, high): bounds of the share of background and ignored ids in all pixels.
        Wide, to detect labels of another rule, not other images.
      raw: ids that only occur in the raw maps from which label files are made, and their name.
      source: where the files come from, for reports of missing files.
      lists: (split, SHA-1 of its sorted stems, joined by newlines).
      images_per_class: (split, number of its label maps that contain each class except background).
      image_labels: whether every image must have image labels.
    """

    record: Dataset
    counts: tuple[tuple[str, tuple[int, ...]], ...]
    shares: tuple[tuple[int, float, float], ...] = ()
    raw: tuple[range, str] = (range(0), "")
    source: str = ""
    lists: tuple[tuple[str, str], ...] = ()
    images_per_class: tuple[tuple[str, tuple[int, ...]], ...] = ()
    image_labels: bool = False

    @property
    def classes(self) -> range:
        """The ids of the classes in the files."""
        first = int(self.record.reduce_zero_label)
        return range(first, first + self.record.num_classes)

    @property
    def foreground(self) -> range:
        """The ids of the classes in the files, except the background's."""
        return self.classes[int(self.record.background) :]

    @property
    def allowed(self) -> frozenset[int]:
        """All ids that may occur in label files."""
        no_class = {0} if self.record.reduce_zero_label else set()
        return frozenset((*self.classes, *no_class, self.record.ignore_label))


@dataclass(frozen=True)
class Problem:
    """One kind of fault: the files or names that have it, and the remedy."""

    kind: str
    items: list[str]
    remedy: str


@dataclass
class Checked:
    """The result of `check`.

    Attributes:
      root: the dataset's own folder.
      images: split -> number of images.
      labels: number of readable label maps.
      histogram: (257,) pixels of each id in them; the last bin counts ids above 255.
      problems: empty if the dataset is complete and correct.
    """

    root: Path
    images: dict[str, int]
    labels: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BEYOND + 1, np.int64))
    problems: list[Problem] = field(default_factory=list)

    def share(self, label: int) -> float:
        """The share of an id in all pixels."""
        return float(self.histogram[label] / max(self.histogram.sum(), 1))


class Faults(dict[str, list[str]]):
    """Kind of fault -> files or names that have it, in the order of detection."""

    def add(self, kind: str, *items: str) -> None:
        """Adds files or names that have a fault; without any does nothing."""
        if items:
            self.setdefault(kind, []).extend(items)

    def problems(self, expected: Expected) -> list[Problem]:
        """The faults with the remedy of each kind."""
        return [Problem(kind, items, _remedy(kind, expected)) for kind, items in self.items()]


def _remedy(kind: str, expected: Expected) -> str:
    no_class = [str(label) for label in sorted(expected.allowed - set(expected.classes))]
    classes = f"{expected.classes[0]} to {expected.classes[-1]}"
    unpack_again = "Unpack these files again; if that does not help, download them again."
    convert_again = "These are labels of another release or rule; unpack or convert them again."
    return {
        "listed twice": "Use the published list.",
        "in two splits": "Use the published lists; training must not use the images of val.",
        "number of images": "Scores on other images are not comparable. " + expected.source,
        "other images": "Scores on other images are not comparable. Use the published list, "
        "or delete this one and let --write make it.",
        "unreadable list": "Save the list as UTF-8 text with one stem a line, or delete it.",
        "list of another folder": "Use a list of stems, one per line.",
        "unreadable image": unpack_again,
        "unreadable label": unpack_again,
        "colour label": "Labels must be class ids in a grey or palette PNG; unpack the original "
        "files again, and do not save them with a tool that converts palettes to colours.",
        "sizes differ": "Unpack images and labels of the same release; resize neither.",
        "ids out of range": f"Classes are {classes}; {' and '.join(no_class)} mean no class. Is "
        "it this dataset? Otherwise unpack or convert the labels again.",
        "raw ids": f"These look like {expected.raw[1]}; other files may have them without being "
        "detected. Delete the label files of this kind and let --write make them again.",
        "no image labels": "Training from image labels leaves these out. " + unpack_again,
        "class without a pixel": convert_again,
        "images with a class": convert_again,
        "implausible share of pixels": convert_again,
    }.get(kind, expected.source)
