"""COCO's outlines, polygons and run-length codes, as masks.

pycocotools trusts what it is given: a polygon takes memory by its length, a run-length code by the
size that it states, and a damaged code is read beyond its end. So both are checked before.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any

import numpy as np

_MAX_POLYGONS = 10_000  # of an object
_MAX_LENGTH = 1 << 21  # of a polygon, in pixels
_STEPS = 5  # that a pixel of an outline takes; a pixel of a mask takes one


def pack(outline: Any) -> Any:
    """An outline as it is kept: polygons as arrays, since train2014 has 25 million numbers."""
    if not isinstance(outline, list):
        return outline
    try:
        return [array.array("d", polygon) for polygon in outline]
    except (TypeError, OverflowError):  # said when it is drawn
        return outline


def mask(outline: Any, size: tuple[int, int], most: int = 1 << 31) -> np.ndarray | None:
    """Mask (h, w) uint8 of an outline; None: it has no area.

    Args:
      size: (height, width) of the image.
      most: steps that the polygons may take, some nanoseconds each.

    Raises:
      ValueError: it cannot be drawn, or is not of an image of this size.
      ImportError: pycocotools is missing.
    """
    try:
        from pycocotools import mask as rle
    except ImportError as error:
        raise ImportError(
            "drawing COCO's objects needs pycocotools; install the data extra: "
            "pip install 'clipseg_jax[data]'"
        ) from error
    height, width = size
    if isinstance(outline, dict):
        code = {"size": list(size), "counts": _counts(outline, size)}
        return rle.decode(rle.frPyObjects(code, height, width))
    polygons = _polygons(outline, size, most)
    if not polygons:
        return None
    return rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))


def _polygons(outline: Any, size: tuple[int, int], most: int) -> list[list[float]]:
    """The polygons of an outline that have an area."""
    if not isinstance(outline, list):
        raise ValueError("its segmentation is neither polygons nor a run-length code")
    if len(outline) > _MAX_POLYGONS:
        raise ValueError(f"it has {len(outline)} polygons, more than {_MAX_POLYGONS}")
    side, kept, total = max(size), [], 0.0
    for polygon in outline:
        if not isinstance(polygon, array.array):
            raise ValueError("its segmentation is not a list of polygons, lists of numbers")
        if len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} coordinates, an odd number")
        points = np.frombuffer(polygon, np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("a polygon has a coordinate that is not finite")
        if ((points < -side) | (points > 2 * side)).any():
            raise ValueError(
                f"a polygon has the coordinate {points.flat[np.abs(points).argmax()]:g}, far "
                f"outside of the image of {size[0]} x {size[1]}"
            )
        length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1, initial=0).sum()
        total += float(length)
        if length > _MAX_LENGTH:
            raise ValueError(f"a polygon is longer than {_MAX_LENGTH} pixels")
        if len(points) > 2:  # pycocotools takes two points for a box
            kept.append(polygon.tolist())
    # Each polygon is merged with all before it.
    if total * (_STEPS + len(kept)) > most:
        raise ValueError(f"its {len(kept)} polygons of {total:.0f} pixels take too long")
    return kept


def _counts(code: dict[str, Any], size: tuple[int, int]) -> Sequence[int]:
    """The runs of a run-length code of an image of this size."""
    stated = code.get("size")
    if stated != list(size) or not all(type(each) is int for each in stated):
        raise ValueError(f"its run-length code is for an image of {stated}")
    counts = code.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(each) is int and each >= 0 for each in counts):
        raise ValueError("the counts of its run-length code are not whole numbers")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"its run-length code is of {sum(counts)} pixels, the image of {size[0] * size[1]}"
        )
    return counts


def _unpacked(text: str) -> list[int]:
    """The counts of a packed code: 5 bits a character, low ones first, differences from the third.

    As pycocotools' rleFrString.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its packed run-length code is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more follows
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its packed run-length code is cut short")
    return counts
