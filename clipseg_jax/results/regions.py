"""The regions of a label map as COCO wants them: run lengths or polygons, with area and box.

Needs the extra "data": run lengths are compressed by pycocotools, parts and outlines are OpenCV's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

_TOLERANCE_PX = 1.0  # of a polygon from the outline of its mask


class Region(NamedTuple):
    """The pixels of an annotation."""

    label: int
    segmentation: dict[str, Any] | list[list[float]]  # run lengths, or polygons
    area: int  # in pixels
    bbox: list[float]  # x, y, width, height in pixels


def class_regions(labels: np.ndarray) -> Iterator[Region]:
    """One region for each class in labels (h, w), which count from 1; 0 is background."""
    yield from _encoded(_columns(labels), range(256), labels.shape)


def object_regions(labels: np.ndarray) -> Iterator[Region]:
    """One region for each connected part of a class in labels (h, w); corners connect."""
    columns = _columns(labels)
    for label, first, here in _bands(columns):
        count, parts = cv2.connectedComponents(here, connectivity=8)
        yield from _encoded(parts, [label] * count, labels.shape, first)


def polygon_regions(labels: np.ndarray) -> Iterator[Region]:
    """The parts of `object_regions` with polygons, which follow the mask to within a pixel.

    Every part is a single polygon: seams lead to its holes and back.
    """
    columns = _columns(labels)
    for label, first, here in _bands(columns):
        _, parts, stats, _ = cv2.connectedComponentsWithStats(here, connectivity=8)
        # Of doubled pixels, so that outlines run along the edges of pixels, not through centres.
        double = here.repeat(2, axis=0).repeat(2, axis=1)
        outlines, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for i, outline in enumerate(outlines):
            _, _, hole, parent = tree[0, i]
            if parent >= 0:
                continue
            row, column = outline[0, 0, ::-1] // 2
            polygon = _corners(outline)
            while hole >= 0:
                polygon = _with_hole(polygon, _corners(outlines[hole]))
                hole = tree[0, hole, 0]
            # `here` is transposed: its rows are columns of the image, from `first` on.
            top, left, height, width, area = stats[parts[row, column]].tolist()
            points = (polygon[:, ::-1] + (first, 0)).ravel().tolist()
            box = [float(number) for number in (left + first, top, width, height)]
            yield Region(label, [[float(each) for each in points]], area, box)


def _columns(labels: np.ndarray) -> np.ndarray:
    """Labels (h, w) as (w, h) uint8 in memory: run lengths go down the columns."""
    return np.ascontiguousarray(labels.T, np.uint8)


def _bands(columns: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(label, first column, (w', h) uint8: 1 where it is) of each class, where it is at all."""
    for label in np.flatnonzero(np.bincount(columns.ravel(), minlength=1)[1:]) + 1:
        here = columns == label
        used = np.flatnonzero(here.any(axis=1))
        first, last = int(used[0]), int(used[-1])
        yield int(label), first, here[first : last + 1].view(np.uint8)


def _encoded(
    parts: np.ndarray, labels: Sequence[int], size: tuple[int, ...], first: int = 0
) -> Iterator[Region]:
    """A region for each number but 0 in `parts` (w', h), whose first row is the column `first`.

    `labels`: of each number. The time is that of the runs, not of the pixels times the parts.
    """
    height, width = size
    flat = parts.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    order = order[values[order] > 0]
    offset = first * height
    groups = np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if order.size else []
    for group in sorted(groups, key=lambda each: each[0]):  # by the first pixel, column by column
        on, off = starts[group] + offset, ends[group] + offset
        counts = np.stack([on - np.append(0, off[:-1]), off - on], axis=1).ravel().tolist()
        if rest := height * width - int(off[-1]):
            counts.append(rest)
        run_lengths = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, *size)
        yield Region(
            labels[int(values[group[0]])],
            {"size": [height, width], "counts": run_lengths["counts"].decode("ascii")},
            int(coco_mask.area(run_lengths)),
            coco_mask.toBbox(run_lengths).tolist(),
        )


def _corners(outline: np.ndarray) -> np.ndarray:
    """The corners (n, 2) int of an outline (n, 1, 2) of doubled pixels, in pixels.

    Of the two halves of a pixel the first begins at its start, the second ends at its end.
    """
    corners = (outline[:, 0].astype(np.int64) + 1) // 2
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    fewer = cv2.approxPolyDP(corners.astype(np.int32)[:, None], _TOLERANCE_PX, True)[:, 0]
    return fewer if len(fewer) > 3 else corners


def _with_hole(polygon: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A polygon (n, 2) that goes from its corner nearest to a hole (m, 2) around it and back."""
    at = int(np.argmin(((polygon - hole[0]) ** 2).sum(axis=1)))
    return np.concatenate([polygon[: at + 1], hole, hole[:1], polygon[at:]])
