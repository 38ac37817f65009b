"""Pictures of an evaluation, for TensorBoard and reports: a fixed panel, the best and the worst.

A picture is an image, its truth and its prediction side by side. What is best is said by the mean
IoU of an image by itself, over the classes that it shows or is said to show.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from clipseg_jax.core.comparison import compare
from clipseg_jax.core.files import write_atomic, write_json
from clipseg_jax.core.json_lines import read_partial, write_lines
from clipseg_jax.core.label_images import save_image, with_legend
from clipseg_jax.core.metrics import percent_text
from clipseg_jax.core.writer import Shown
from clipseg_jax.evaluate import Segmented
from input_pipeline.batches.buckets import PlannedBatch
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.images import BadFile, read_image
from input_pipeline.places import is_remote

_PANEL = 6  # pictures
_KEPT = 6  # of the best and of the worst images each
_NAMED = 8  # classes in a legend
_OPACITY = 0.7  # colours are to be told apart on coloured pixels


@dataclasses.dataclass(frozen=True)
class Score:
    """An image's score; `rank` orders the best first."""

    index: int
    value: float  # mean IoU, a fraction
    labels: tuple[int, ...]  # of the largest classes in its truth or its prediction

    @property
    def rank(self) -> tuple[float, int]:
        """The lower, the better; of equal scores the first image's."""
        return -self.value, self.index


def score_of(index: int, counts: np.ndarray) -> Score | None:
    """The score of an image from its `Segmented.counts`; None without labelled pixels."""
    right, labelled, predicted = counts.astype(np.int64)
    union = labelled + predicted - right
    occurs = np.flatnonzero(union)
    if not labelled.any():
        return None
    largest = occurs[np.argsort(-union[occurs], kind="stable")][:_NAMED]
    value = float(np.mean(right[occurs] / union[occurs]))
    return Score(index, value, tuple(int(label) for label in largest))


def best_and_worst(scores: Iterable[Score]) -> tuple[list[Score], list[Score]]:
    """The best scores, best first, and the worst, worst first; none is in both."""
    ranking = sorted(scores, key=lambda score: score.rank)
    half = len(ranking) // 2
    return ranking[: min(_KEPT, len(ranking) - half)], ranking[::-1][: min(_KEPT, half)]


def panel_of(plan: Sequence[PlannedBatch]) -> tuple[int, ...]:
    """Indices of the images of the panel, which the first of several processes segments.

    Every process count has the same panel as long as there are enough batches: it takes the first
    image of batches that are evenly apart. Of fewer batches it takes the second images, and so on.
    """
    rows = zip(*(zip(batch.indices, batch.valid, strict=True) for batch in plan), strict=True)
    indices = [index for row in rows for index, valid in row if valid]
    if len(plan) < _PANEL:
        return tuple(indices[:_PANEL])
    return tuple(indices[i * len(plan) // _PANEL] for i in range(_PANEL))


class Panel:
    """The pictures of the panel, in memory."""

    def __init__(self, dataset: Dataset, indices: Collection[int]):
        self._dataset, self._indices = dataset, indices
        self._pictures: dict[int, np.ndarray] = {}

    def add(self, one: Segmented) -> None:
        """Takes the picture of an image, if it is of the panel."""
        if one.index in self._indices:
            score = score_of(one.index, one.counts())
            labels = score.labels if score else ()
            self._pictures[one.index] = _with_legend(
                _picture(self._dataset, one), self._dataset, labels
            )

    def pictures(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Name -> picture with a legend, of the panel's images that were segmented."""
        return {names[i]: self._pictures[i] for i in self._indices if i in self._pictures}


class Showcase:
    """The scores of all images; the pictures of the panel, of the best and of the worst so far.

    Pictures are files in `folder`, which several processes may share. A run that resumes finds
    there what the interrupted one has kept.
    """

    def __init__(self, dataset: Dataset, panel: Collection[int], folder: Path):
        self._dataset, self._panel, self._folder = dataset, panel, folder
        self._ends: dict[int, Score] = {}

    def begin(self) -> None:
        """Takes over what an interrupted run has kept; before the first image."""
        self._ends = _ends(_scores(self._folder))

    def add(self, one: Segmented, write: Callable[[Mapping[str, Any]], object]) -> None:
        """Keeps the picture of an image, if it is one to be kept; then `write`s its score."""
        score = score_of(one.index, one.counts())
        before = self._ends
        if score:
            self._ends = _ends({**before, one.index: score})
        if one.index in self._panel or one.index in self._ends:
            save_image(self._path(one.index), _picture(self._dataset, one))
        if score:
            write({"index": score.index, "score": score.value, "labels": score.labels})
        for index in before.keys() - self._ends.keys() - {*self._panel}:
            self._path(index).unlink(missing_ok=True)

    def panel(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Name -> picture with a legend, of the panel's images that were segmented."""
        scores = _scores(self._folder)
        out = {}
        for index in self._panel:
            if (picture := self._read(index)) is not None:
                labels = scores[index].labels if index in scores else ()
                out[names[index]] = _with_legend(picture, self._dataset, labels)
        return out

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.jpg"

    def _read(self, index: int) -> np.ndarray | None:
        """A picture; None where there is none, or, of a machine that lost power, half of one."""
        path = self._path(index)
        try:
            return read_image(path) if path.exists() else None
        except BadFile as error:
            logging.warning("left out of the pictures of the evaluation: %s", error)
            return None

    def store(self, workdir: Path, suffix: str, names: Sequence[str]) -> None:
        """Writes examplesSUFFIX/ with the best and the worst, and image_scoresSUFFIX.jsonl.

        For one process, when all have segmented their images.
        """
        scores = _scores(self._folder)
        lines = [
            {"name": names[i], "mIoU": round(100 * scores[i].value, 2)} for i in sorted(scores)
        ]
        write_lines(workdir / f"image_scores{suffix}.jsonl", lines)
        folder = workdir / f"examples{suffix}"
        clear_pictures(folder)
        listed: dict[str, Any] = {"images": len(scores)}
        for kind, chosen in zip(("best", "worst"), best_and_worst(scores.values()), strict=True):
            listed[kind] = []
            for score in chosen:
                if self._read(score.index) is None:
                    continue
                name = f"{kind}_{len(listed[kind]) + 1}.jpg"
                _copy(self._path(score.index), folder / name)
                listed[kind].append(
                    {
                        "file": name,
                        "name": names[score.index],
                        "mIoU": round(100 * score.value, 2),
                        "classes": {
                            text: "#" + bytes(colour).hex()
                            for text, colour in legend(self._dataset, score.labels)
                        },
                    }
                )
        write_json(folder / "examples.json", listed)


def _ends(scores: Mapping[int, Score]) -> dict[int, Score]:
    """The scores that are among the best or the worst."""
    ranking = sorted(scores.values(), key=lambda score: score.rank)
    return {score.index: score for score in (*ranking[:_KEPT], *ranking[_KEPT:][-_KEPT:])}


def _picture(dataset: Dataset, one: Segmented) -> np.ndarray:
    """Image, truth and prediction side by side."""
    colours, clear = np.asarray(dataset.palette, np.uint8), _clear(dataset)
    assert one.truth is not None  # only labelled images are scored
    return compare(one.image, one.truth, one.labels(), colours, _OPACITY, clear=clear)


def _with_legend(picture: np.ndarray, dataset: Dataset, labels: Sequence[int]) -> np.ndarray:
    return with_legend(picture, legend(dataset, labels), scale=1.25)


def clear_pictures(folder: Path) -> None:
    """Removes the pictures in `folder` that a showcase left, and the folder if nothing else is."""
    for path in folder.glob("*.jpg"):
        path.unlink(missing_ok=True)
    if is_remote(folder):  # which has no empty folders
        return
    with contextlib.suppress(OSError):
        folder.rmdir()


def legend(dataset: Dataset, labels: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    """(class name, colour) of the labels that pictures colour."""
    colours = np.asarray(dataset.palette, np.uint8)
    seen = [label for label in labels if label not in _clear(dataset)]
    return [(dataset.class_names[label], colours[label]) for label in seen]


def shown(
    per_class: Mapping[str, Mapping[str, float | None]], panel: Mapping[str, np.ndarray]
) -> Shown:
    """What TensorBoard shows of an evaluation.

    Args:
      per_class: as `SegmentationMetrics.per_class`.
      panel: as `Showcase.panel`.
    """
    rows = [
        f"| {_markdown(name)} | {' | '.join(percent_text(value) for value in row.values())} |"
        for name, row in per_class.items()
    ]
    table = "\n".join(["| class | IoU | Acc | Prec |", "|---|---:|---:|---:|", *rows])
    ious = {f"iou/{name}": row["IoU"] for name, row in per_class.items()}
    return Shown(
        scalars={tag: iou for tag, iou in ious.items() if iou is not None},
        images={f"panel/{name}": picture for name, picture in panel.items()},
        texts={"classes": table},
    )


def _markdown(text: str) -> str:
    """Text of a cell; nothing in it is Markdown or HTML."""
    return "".join(c if c.isalnum() or c in " ,.-" else f"&#{ord(c)};" for c in text)


def _clear(dataset: Dataset) -> tuple[int, ...]:
    return (0, 255) if dataset.background else (255,)


def _copy(path: Path, to: Path) -> None:
    content = path.read_bytes()
    write_atomic(to, lambda file: file.write(content))


def _scores(folder: Path) -> dict[int, Score]:
    """The scores in `folder` of all processes, of this and of interrupted runs."""
    return {
        line["index"]: Score(line["index"], line["score"], tuple(line["labels"]))
        for line in read_partial(folder, index=int)
        if "score" in line
    }
