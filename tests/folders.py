"""Generates user inputs: weights of full size and datasets in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from clipseg_jax.demo import world
from tests import seeded
from weights_convert.formats import safetensors as safetensors_file

ROOT = Path(__file__).resolve().parent.parent


def write_painted(root, images, training):
    """The painted world, 64 px: `images` to score, and in `train` those to train on."""
    world.write_dataset(root, images, 64)
    world.write_dataset(root / "train", training, 64, "train")
    return root


def write_voc(root, train=5, val=2, size=(72, 96), aug=0, change=lambda label: label):
    """A small folder in VOC's layout: JPEGs, palette PNGs, split lists; `aug` images of SBD.

    `change` is done to the labels that train.
    """
    splits = [("train", 0, train, "SegmentationClass"), ("val", 100, val, "SegmentationClass")]
    splits += [("aug", 50, aug, "SegmentationClassAug")] * bool(aug)
    return _write_listed(root, "ImageSets/Segmentation", splits, 21, size, change)


def write_context(root, train=5, val=2, size=(72, 96)):
    """A small folder in Pascal Context's layout, labels 0 to 59."""
    labels = "SegmentationClassContext"
    splits = [("train", 0, train, labels), ("val", 100, val, labels)]
    return _write_listed(root, "ImageSets/SegmentationContext", splits, 60, size)


def _write_listed(root, lists, splits, classes, size, change=lambda label: label):
    for split, first, count, labels in splits:
        for folder in (lists, "JPEGImages", labels):
            (root / folder).mkdir(parents=True, exist_ok=True)
        stems = [f"2007_{first + i:06d}" for i in range(count)]
        (root / lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for i, stem in enumerate(stems):
            Image.fromarray(seeded.image(*size, first + i)).save(root / f"JPEGImages/{stem}.jpg")
            label_map = seeded.label_map(*size, classes, first + i)
            label = Image.fromarray(label_map if split == "val" else change(label_map), "P")
            label.putpalette([n for i in range(256) for n in (i, 255 - i, i // 2)])
            label.save(root / labels / f"{stem}.png")
    return root


def write_coco_stuff(root, train=5, val=2, size=(72, 96)):
    """A small folder in COCO-Stuff 164k's layout: converted labels 0 to 170."""
    for split, first, count in (("train2017", 0, train), ("val2017", 100, val)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            Image.fromarray(seeded.image(*size, i)).save(root / f"images/{split}/{i:012d}.jpg")
            label = Image.fromarray(seeded.label_map(*size, 171, i))
            label.save(root / f"annotations/{split}/{i:012d}_labelTrainIds.png")
    return root


def write_clip(path, shapes):
    """Seeded weights of a CLIP of OpenAI's names and these shapes, the larger ones as float16."""
    weights = seeded.state_dict(shapes, 0)
    half = {k: v.astype(np.float16) if v.ndim > 1 else v for k, v in weights.items()}
    with path.open("wb") as file:
        safetensors_file.write(file, half, {})
    return path


def write_full_size(root):
    """Seeded ViT-B/16 weights in vit_b16.safetensors, and a VOC folder in VOC2012."""
    shapes = json.loads((ROOT / "tests/golden/clip/shapes.json").read_text())["ViT-B/16"]
    write_clip(root / "vit_b16.safetensors", shapes)
    write_voc(root / "VOC2012")
    return root
