"""COCO's objects: instances_*.json as image labels, and drawn as label maps with background 0.

Where objects overlap, the one of the smaller area (as annotated) is on top, and of equal ones the
one that comes first in the file: a cup on a table would otherwise be lost. Crowd regions are drawn
like objects, with the class they are a crowd of, so that every image label has pixels and no pixel
is ignored. CLIP-ES's own masks (`SegmentationClass`) are published without the code that drew them;
these rules are those of the commonly used converter, and single pixels may differ.
"""

from __future__ import annotations

import array
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.datasets.class_sets import class_set, coco_stuff_171_labels
from input_pipeline.datasets.images import BadFile, BadLabel

CLASSES = 80
_KEPT = ("image_id", "category_id", "area", "segmentation")


class Object(NamedTuple):
    """An annotated object, or a crowd of them.

    `label` is 0..79, in COCO's order; -1: a category that COCO doesn't have. `outline` is polygons,
    or a run-length code, as in the file.
    """

    label: int
    area: float
    outline: Any


@dataclass(frozen=True)
class Picture:
    """A picture of instances_*.json; `name` without suffix, `size` is (height, width)."""

    name: str
    size: tuple[int, int]
    objects: list[Object] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)

    @property
    def labels(self) -> tuple[int, ...]:
        """Classes (0..79) of its objects, ascending, crowds included."""
        return tuple(sorted({each.label for each in self.objects}))


def read_instances(path: Path) -> dict[str, Picture]:
    """The pictures of an instances_*.json by name, in the names' order, without objects as well.

    Categories that COCO doesn't have are noted in `Picture.unknown`.

    Raises:
      BadFile: missing, cut short, or no file of COCO's objects.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=_slim)
        _check_categories(content["categories"])
        pictures = {
            each["id"]: Picture(Path(each["file_name"]).stem, (each["height"], each["width"]))
            for each in content["images"]
        }
        labels = coco_stuff_171_labels()
        for each in content["annotations"]:
            picture, category = pictures[each["image_id"]], each["category_id"]
            label = int(labels[category - 1]) if 1 <= category <= 90 else 255
            if label < CLASSES:
                outline = each.get("segmentation")
                picture.objects.append(Object(label, each["area"], outline))
            else:
                picture.unknown.append(category)
    except FileNotFoundError as error:
        raise BadFile(
            f"{path}: no such file; unpack COCO's annotations_trainval*.zip there"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadFile(
            f"{path}: can't read COCO's objects ({_said(error)}); unpack "
            f"annotations_trainval*.zip again"
        ) from error
    named = sorted(pictures.values(), key=lambda picture: picture.name)
    return {picture.name: picture for picture in named}


def draw(picture: Picture) -> np.ndarray:
    """Labels (h, w) uint8 of a picture: 0 background, class + 1 where an object is.

    Raises:
      BadLabel: an unknown category, or an outline that can't be drawn.
    """
    try:
        from pycocotools import mask as rle
    except ImportError as error:
        raise ImportError(
            "drawing COCO's objects needs pycocotools; install the data extra: "
            "pip install 'clipseg_jax[data]'"
        ) from error
    if picture.unknown:
        raise BadLabel(f"{picture.name}: category {picture.unknown[0]} is none of COCO's 80")
    height, width = picture.size
    labels = np.zeros(picture.size, np.uint8)
    # Painted from the back; sorting keeps the file's order, so of equal areas the first is on top.
    for each in reversed(sorted(picture.objects, key=lambda each: each.area)):
        outline = each.outline
        try:
            if isinstance(outline, dict):
                coded = isinstance(outline["counts"], str)
                code = outline if coded else rle.frPyObjects(outline, height, width)
            else:
                code = rle.merge(rle.frPyObjects([list(p) for p in outline], height, width))
            inside = rle.decode(code)
            if inside.shape != picture.size:
                raise ValueError(f"it is of a picture of {inside.shape[0]} x {inside.shape[1]}")
        except Exception as error:  # pycocotools raises nearly anything on damaged outlines
            raise BadLabel(
                f"{picture.name}: can't draw an object of class {each.label} ({_said(error)})"
            ) from error
        labels[inside.astype(bool)] = each.label + 1
    return labels


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """Of an annotation what is needed, with packed polygons: train2014 has 25 million numbers."""
    if "image_id" not in entry:
        return entry
    kept = {key: entry[key] for key in _KEPT if key in entry}
    if isinstance(kept.get("segmentation"), list):
        kept["segmentation"] = [array.array("d", polygon) for polygon in kept["segmentation"]]
    return kept


def _check_categories(categories: list[dict[str, Any]]) -> None:
    names, labels = class_set("stuff").names, coco_stuff_171_labels()
    for each in categories:
        number, name = each["id"], each["name"]
        expected = (
            names[labels[number - 1]]
            if 1 <= number <= 90 and labels[number - 1] < CLASSES
            else None
        )
        if expected is not None and name != expected:
            raise ValueError(f"category {number} is {name!r}, and COCO's is {expected!r}")


def _said(error: Exception) -> str:
    said = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
    return " ".join(said.split()) or type(error).__name__
