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
# Of all polygons of an object, in pixels: pycocotools takes 100 ns for each.
_MAX_LENGTH, _FREE_LENGTH, _PIXELS_A_LENGTH = 1 << 21, 1 << 16, 16


def pack(outline: Any) -> Any:
    """An outline as it is kept: polygons as arrays, since train2014 has 25 million numbers."""
    if not isinstance(outline, list):
        return outline
    try:
        return [array.array("d", polygon) for polygon in outline]
    except (TypeError, OverflowError):  # said when it is drawn
        return outline


def mask(outline: Any, size: tuple[int, int]) -> np.ndarray | None:
    """Mask (h, w) uint8 of an outline; None: it has no area.

    Args:
      size: (height, width) of the image.

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
    polygons = _polygons(outline, size)
    if not polygons:
        return None
    return rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))


def _polygons(outline: Any, size: tuple[int, int]) -> list[list[float]]:
    """The polygons of an outline that have an area."""
    if not isinstance(outline, list):
        raise ValueError("its segmentation is neither polygons nor a run-length code")
    if len(outline) > _MAX_POLYGONS:
        raise ValueError(f"it has {len(outline)} polygons, more than {_MAX_POLYGONS}")
    side, kept, length = max(size), [], 0.0
    longest = min(_MAX_LENGTH, max(_FREE_LENGTH, size[0] * size[1] // _PIXELS_A_LENGTH))
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
        steps = np.abs(np.diff(points, axis=0, append=points[:1]))
        length += steps.max(axis=1, initial=0).sum()
        if length > longest:
            raise ValueError(f"its polygons are longer than {longest} pixels")
        if len(points) > 2:  # pycocotools takes two points for a box
            kept.append(polygon.tolist())
    return kept


def _counts(code: dict[str, Any], size: tuple[int, int]) -> Sequence[int]:
    """The runs of a run-length code of an image of this size."""
    if code.get("size") != list(size) or not all(type(each) is int for each in code["size"]):
        raise ValueError(f"its run-length code is for an image of {code.get('size')}")
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
