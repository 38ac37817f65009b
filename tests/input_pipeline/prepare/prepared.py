"""Datasets of three small images in each layout, to check and to convert."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.prepare.expected import Expected
from input_pipeline.prepare.preparations import PREPARATIONS

SIZE = (20, 20)  # pixels enough for every class
STEMS = {"train": ("a", "b"), "val": ("c",)}
SPLITS = {"ade20k": {"train": "training", "val": "validation"}}
SPLITS["coco_stuff_27"] = SPLITS["coco_stuff_171"] = {"train": "train2017", "val": "val2017"}
LISTED = {
    "voc": ("SegmentationClass", "Segmentation"),
    "context": ("SegmentationClassContext", "SegmentationContext"),
}
LAYOUTS = ("voc", "context", "ade20k", "cityscapes", "coco_stuff_27")


def image_file(name: str, split: str, stem: str) -> str:
    if name in LISTED:
        return f"JPEGImages/{stem}.jpg"
    if name == "cityscapes":
        return f"leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png"
    return f"images/{SPLITS[name][split]}/{stem}.jpg"


def label(name: str, split: str, stem: str) -> str:
    if name in LISTED:
        return f"{LISTED[name][0]}/{stem}.png"
    if name == "cityscapes":
        return f"gtFine/{split}/ulm/{stem}_gtFine_labelTrainIds.png"
    suffix = PREPARATIONS[name].expected.record.layout.label_suffix
    return f"annotations/{SPLITS[name][split]}/{stem}{suffix}"


def small(name: str) -> Expected:
    counts = tuple((split, (len(stems),)) for split, stems in STEMS.items())
    expected = PREPARATIONS[name].expected
    return dataclasses.replace(expected, counts=counts, lists=(), images_per_class=())


def plausible(name: str) -> np.ndarray:
    """A label map with every class, and ids that are none in a fitting share."""
    expected = PREPARATIONS[name].expected
    pixels = SIZE[0] * SIZE[1]
    ids = [i for i, low, high in expected.shares for _ in range(int((low + high) / 2 * pixels))]
    classes = list(expected.classes)
    ids += (classes * pixels)[: pixels - len(ids)]
    return np.array(ids, np.uint8).reshape(SIZE)


def save_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def save(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def whole(root: Path, name: str) -> Path:
    for split, stems in STEMS.items():
        for stem in stems:
            save_image(root / image_file(name, split, stem))
            save(root / label(name, split, stem), plausible(name))
        if name in LISTED:
            path = root / "ImageSets" / LISTED[name][1] / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(stems) + "\n")
    return root
