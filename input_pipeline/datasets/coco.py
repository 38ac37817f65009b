"""COCO's objects: instances_*.json as image labels, and drawn as label maps with background 0.

Where objects overlap the one with the smaller annotated area is on top, and of equal areas the one
that comes first in the file, so that a cup on a table is not lost. Crowd regions are drawn like
objects of their class, so that every image label has pixels and no pixel is ignored. CLIP-ES's own
masks (`SegmentationClass`) are published without the code that drew them; these rules are those of
the commonly used converter, and single pixels may differ.
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

    Attributes:
      label: class 0..79, in COCO's order.
      area: as annotated.
      outline: polygons or a run-length code, as in the file.
    """

    label: int
    area: float
    outline: Any


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of instances_*.json and its objects.

    Attributes:
      name: file name without suffix.
      size: (height, width).
      objects: in the file's order.
      unknown: ids of annotated categories that COCO does not have.
    """

    name: str
    size: tuple[int, int]
    objects: list[Object] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)

    @property
    def labels(self) -> tuple[int, ...]:
        """Classes (0..79) of its objects, ascending, crowds included."""
        return tuple(sorted({each.label for each in self.objects}))


def read_instances(path: Path) -> dict[str, AnnotatedImage]:
    """All images of an instances_*.json by name, sorted, with and without objects.

    Raises:
      BadFile: missing, truncated, or not a file of COCO's objects.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=_slim)
        _check_categories(content["categories"])
        images = {
            each["id"]: AnnotatedImage(
                Path(each["file_name"]).stem, (each["height"], each["width"])
            )
            for each in content["images"]
        }
        labels = coco_stuff_171_labels()
        for each in content["annotations"]:
            image, category = images[each["image_id"]], each["category_id"]
            label = int(labels[category - 1]) if 1 <= category <= 90 else 255
            if label < CLASSES:
                outline = each.get("segmentation")
                image.objects.append(Object(label, each["area"], outline))
            else:
                image.unknown.append(category)
    except FileNotFoundError as error:
        raise BadFile(
            f"{path}: no such file; unpack COCO's annotations_trainval*.zip there"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadFile(
            f"{path}: cannot read COCO's objects ({_message(error)}); unpack "
            f"annotations_trainval*.zip again"
        ) from error
    named = sorted(images.values(), key=lambda image: image.name)
    return {image.name: image for image in named}


def draw(image: AnnotatedImage) -> np.ndarray:
    """Label map (h, w) uint8 of an image: 0 is background, class + 1 an object.

    Raises:
      BadLabel: an unknown category, or an outline that cannot be drawn.
    """
    try:
        from pycocotools import mask as rle
    except ImportError as error:
        raise ImportError(
            "drawing COCO's objects needs pycocotools; install the data extra: "
            "pip install 'clipseg_jax[data]'"
        ) from error
    if image.unknown:
        raise BadLabel(f"{image.name}: category {image.unknown[0]} is not one of COCO's 80")
    height, width = image.size
    labels = np.zeros(image.size, np.uint8)
    # Drawn from back to front. Sorting is stable, so of equal areas the first in the file is on
    # top.
    for each in reversed(sorted(image.objects, key=lambda each: each.area)):
        outline = each.outline
        try:
            if isinstance(outline, dict):
                compressed = isinstance(outline["counts"], str)
                code = outline if compressed else rle.frPyObjects(outline, height, width)
            else:
                code = rle.merge(rle.frPyObjects([list(p) for p in outline], height, width))
            inside = rle.decode(code)
            if inside.shape != image.size:
                raise ValueError(f"it is for an image of {inside.shape[0]} x {inside.shape[1]}")
        except Exception as error:  # pycocotools raises all kinds of errors on damaged outlines
            raise BadLabel(
                f"{image.name}: cannot draw an object of class {each.label} ({_message(error)})"
            ) from error
        labels[inside.astype(bool)] = each.label + 1
    return labels


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """The needed keys of an annotation, polygons packed: train2014 has 25 million numbers."""
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
            raise ValueError(f"category {number} is {name!r}; COCO's is {expected!r}")


def _message(error: Exception) -> str:
    message = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
    return " ".join(message.split()) or type(error).__name__
