"""A folder of masks as one COCO file, made from the index PNGs: no image and no network is needed.

Categories have the numbers of the PNGs (1 is the first class; 0, background, is none), images are
numbered by the names of their results, so that the same masks give the same file. All annotations
have area, bbox, `iscrowd` 0, and as score the mean score of the class in the image.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from clipseg_jax.core.files import json_text
from clipseg_jax.core.label_images import palette
from input_pipeline.datasets.images import BadLabel, read_label
from input_pipeline.writing import ends_with, write_atomic

if TYPE_CHECKING:  # it needs the extra "data"
    from clipseg_jax.results.regions import Region

# By the value of `--format`: one annotation for each class of an image, for each connected part of
# it, and for each such part as polygons, for tools that read no run lengths.
FILES = {
    "coco": "annotations.json",
    "coco-objects": "annotations_objects.json",
    "coco-polygons": "annotations_polygons.json",
}
_END = b"\n]}\n"

Rows = Mapping[str, Mapping[str, Any]]  # name of an image's results -> its line of summary.jsonl


def write_coco(
    out: Path,
    rows: Rows,
    classes: Sequence[str],
    kind: str = "coco",
    *,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda names: names,
) -> list[str]:
    """Writes a folder's COCO file, image by image; returns the names whose masks cannot be read.

    Args:
      out: the output folder of `predict`.
      rows: of the images that are done.
      classes: their names; the first is value 1 of the PNGs.
      kind: one of FILES.
      progress: wraps the names, for a progress bar.

    Raises:
      ModuleNotFoundError: pycocotools or OpenCV is not installed.
      CannotWrite: see `write_atomic`.
    """
    regions = regions_of(kind)
    names = sorted(rows)
    files = file_names({name: str(rows[name]["image"]) for name in names})
    unread: list[str] = []

    def write(file: BinaryIO) -> None:
        images, number = [], 0
        file.write(b'{"annotations": [')
        for image_id, name in enumerate(progress(names), 1):
            try:
                labels = read_label(out / f"{name}.png", len(classes) + 1)
            except BadLabel:
                unread.append(name)
                continue
            height, width = labels.shape
            image = {"id": image_id, "file_name": files[name], "width": width, "height": height}
            images.append(image)
            scores = rows[name].get("classes", {})
            for region in regions(labels):
                number += 1
                category = classes[region.label - 1]
                file.write(b",\n" if number > 1 else b"\n")
                file.write(_annotation(number, image_id, region, scores.get(category, {})))
        file.write(b'\n],\n"categories": [')
        file.write(_lines(categories(classes)))
        file.write(b'\n],\n"info": {"description": "masks by clipseg_jax"},\n"images": [')
        file.write(_lines(images) + _END)

    write_atomic(out / FILES[kind], write)
    return unread


def is_whole(out: Path, kind: str) -> bool:
    """Whether the folder has the COCO file, complete."""
    return ends_with(out / FILES[kind], _END)


def categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """The categories of class names: number, name, and the colour that masks have as RGB."""
    colours = palette(len(classes) + 1).tolist()
    return [{"id": i, "name": name, "color": colours[i]} for i, name in enumerate(classes, 1)]


def file_names(images: Mapping[str, str]) -> dict[str, str]:
    """What COCO calls each image: its path below the folder that was given to `predict`.

    The paths as given, of images that would have the same name.

    Args:
      images: name of the results -> path of the image.
    """
    below = {}
    for name, image in images.items():
        depth = len(PurePath(name).parts)
        below[name] = posixpath.join(*PurePath(image).parts[-depth:])
    counts = Counter(below.values())
    return {name: short if counts[short] == 1 else images[name] for name, short in below.items()}


def regions_of(kind: str) -> Callable[[np.ndarray], Iterator[Region]]:
    """The function from labels (h, w), 0 background, to the regions that `kind` annotates."""
    from clipseg_jax.results import regions

    return {
        "coco": regions.class_regions,
        "coco-objects": regions.object_regions,
        "coco-polygons": regions.polygon_regions,
    }[kind]


def _annotation(number: int, image_id: int, region: Region, figures: Mapping[str, Any]) -> bytes:
    return json_text(
        {
            "id": number,
            "image_id": image_id,
            "category_id": region.label,
            "bbox": region.bbox,
            "area": region.area,
            "iscrowd": 0,
            "score": figures.get("score", 0.0),
            "segmentation": region.segmentation,
        }
    ).encode()


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return ("\n" + ",\n".join(map(json.dumps, records))).encode()
