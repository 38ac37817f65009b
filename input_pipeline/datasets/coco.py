"""COCO's objects: instances_*.json as image labels, and drawn as label maps with background 0.

Where objects overlap the one with the smaller annotated area is on top, and of equal areas the one
that comes first in the file, so that a cup on a table is not lost. Crowd regions are drawn like
objects of their class, so that every image label has pixels and no pixel is ignored. CLIP-ES's own
masks (`SegmentationClass`) are published without the code that drew them; these rules are those of
the commonly used converter, and single pixels may differ.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.datasets import coco_outlines
from input_pipeline.datasets.class_sets import class_set, coco_stuff_171_labels
from input_pipeline.datasets.images import MAX_PIXELS, BadFile, BadLabel
from input_pipeline.json_memory import check_json
from input_pipeline.text_lists import one_line
from input_pipeline.walk import open_regular

CLASSES = 80
_MAX_STEPS = 1 << 31  # of all objects of an image: ten seconds or so; COCO's need 4e7
_MAX_BYTES = 1 << 31  # four times instances_train2017.json
_MAX_AREA = 1e300
_MAX_NAME = 255  # of file systems
_KEPT = ("id", "image_id", "category_id", "area", "segmentation")


class Object(NamedTuple):
    """An annotated object, or a crowd of them.

    Attributes:
      label: class 0..79, in COCO's order.
      area: as annotated.
      outline: polygons, packed, or a run-length code as in the file; not checked.
      number: id of the annotation, for messages.
    """

    label: int
    area: float
    outline: Any
    number: Any = None


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

    Outlines are checked when they are drawn.

    Raises:
      BadFile: missing, truncated, or not a file of COCO's objects; names the entry that is wrong.
    """
    try:
        content = _content(path)
    except FileNotFoundError as error:
        raise BadFile(
            f"{path}: no such file; unpack COCO's annotations_trainval*.zip there"
        ) from error
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({one_line(error)})") from error
    except (ValueError, RecursionError) as error:
        raise BadFile(
            f"{path}: cannot read COCO's objects ({one_line(error)}); unpack "
            f"annotations_trainval*.zip again"
        ) from error
    try:
        if not isinstance(content, dict):
            raise ValueError("it is no dictionary of images, annotations and categories")
        _check_categories(_entries(content, "categories"))
        images = _images(_entries(content, "images"))
        _add_objects(images, _entries(content, "annotations"))
    except ValueError as error:
        raise BadFile(
            f"{path}: cannot read COCO's objects ({one_line(error)}); mend or drop that "
            f"entry, or unpack annotations_trainval*.zip again"
        ) from error
    named = sorted(images.values(), key=lambda image: image.name)
    return {image.name: image for image in named}


def draw(image: AnnotatedImage) -> np.ndarray:
    """Label map (h, w) uint8 of an image: 0 is background, class + 1 an object.

    Outlines without an area draw nothing.

    Raises:
      BadLabel: an unknown category, or an outline that cannot be drawn; names the annotation.
    """
    if image.unknown:
        raise BadLabel(f"{image.name}: category {image.unknown[0]} is not one of COCO's 80")
    share = _MAX_STEPS // max(len(image.objects), 1)
    if share < image.size[0] * image.size[1]:
        raise BadLabel(
            f"{image.name}: {len(image.objects)} objects are too many for {image.size[0]} x "
            f"{image.size[1]} pixels"
        )
    labels = np.zeros(image.size, np.uint8, order="F")  # as pycocotools' masks: 30 times as fast
    # Drawn from back to front. Sorting is stable, so of equal areas the first in the file is on
    # top.
    for each in reversed(sorted(image.objects, key=lambda each: each.area)):
        try:
            inside = coco_outlines.mask(each.outline, image.size, share)
        except ImportError:
            raise
        except Exception as error:  # pycocotools raises all kinds of errors on damaged outlines
            raise BadLabel(
                f"{image.name}: cannot draw annotation {each.number}, an object of class "
                f"{each.label} ({one_line(error)}); mend or drop it"
            ) from error
        if inside is not None:
            np.copyto(labels, each.label + 1, where=inside.view(bool))
    return np.ascontiguousarray(labels)


def _content(path: Path) -> Any:
    with open_regular(path) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MB")
    check_json(data)
    return json.loads(data, object_pairs_hook=_entry)


def _entry(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of the file; of an annotation the needed keys, polygons packed."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is given twice in one entry")
    if "image_id" not in entry:
        return entry
    kept = {key: entry[key] for key in _KEPT if key in entry}
    if "segmentation" in kept:
        kept["segmentation"] = coco_outlines.pack(kept["segmentation"])
    return kept


def _entries(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise ValueError(f"{key} is no list of entries")
    return entries


def _images(entries: list[dict[str, Any]]) -> dict[int | str, AnnotatedImage]:
    """Images by id."""
    images: dict[int | str, AnnotatedImage] = {}
    numbers: dict[str, int | str] = {}  # name -> id
    for entry in entries:
        number: Any = entry.get("id")
        file = entry.get("file_name")
        if type(number) not in (int, str) or number in images:
            raise ValueError(f"image id {number!r} is no number or is given twice")
        if not isinstance(file, str) or not Path(file).stem or not file.isprintable():
            raise ValueError(f"image {number} has the file_name {file!r}")
        if len(os.fsencode(Path(file).name)) > _MAX_NAME:
            raise ValueError(f"image {number} has a file_name of more than {_MAX_NAME} bytes")
        height, width = size = entry.get("height"), entry.get("width")
        if type(height) is not int or type(width) is not int or min(height, width) < 1:
            raise ValueError(f"image {number} has the height and width {size}, no whole numbers")
        if height * width > MAX_PIXELS:
            raise ValueError(f"image {number} of {height} x {width} has over {MAX_PIXELS} pixels")
        name = Path(file).stem
        if name in numbers:
            raise ValueError(f"images {numbers[name]} and {number} are both called {name}")
        numbers[name] = number
        images[number] = AnnotatedImage(name, (height, width))
    return images


def _add_objects(images: dict[int | str, AnnotatedImage], entries: list[dict[str, Any]]) -> None:
    labels = coco_stuff_171_labels()
    for entry in entries:
        number, where = entry.get("id"), entry.get("image_id")
        category: Any = entry.get("category_id")
        area: Any = entry.get("area")
        if type(where) not in (int, str) or where not in images:
            raise ValueError(f"annotation {number} has the image_id {where!r}, no image's id")
        if type(category) is not int:
            raise ValueError(f"annotation {number} has the category_id {category!r}, no number")
        if type(area) not in (int, float) or not -_MAX_AREA < area < _MAX_AREA:
            raise ValueError(f"annotation {number} has the area {area!r}, no number")
        image = images[where]
        label = int(labels[category - 1]) if 1 <= category <= 90 else 255
        if label < CLASSES:
            image.objects.append(Object(label, area, entry.get("segmentation"), number))
        else:
            image.unknown.append(category)


def _check_categories(categories: list[dict[str, Any]]) -> None:
    names, labels = class_set("stuff").names, coco_stuff_171_labels()
    for entry in categories:
        number, name = entry.get("id"), entry.get("name")
        if type(number) is not int or not isinstance(name, str):
            raise ValueError(f"category {number!r} is called {name!r}")
        expected = (
            names[labels[number - 1]]
            if 1 <= number <= 90 and labels[number - 1] < CLASSES
            else None
        )
        if expected is not None and name != expected:
            raise ValueError(f"category {number} is {name!r}; COCO's is {expected!r}")
