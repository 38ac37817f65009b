"""What a user brings, generated: weights of full size and folders in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests import seeded
from weights_convert import safetensors_file

ROOT = Path(__file__).resolve().parent.parent


def write_voc(root, train=5, val=2, size=(72, 96)):
    """A small folder in VOC's layout: JPEGs, palette PNGs, split lists."""
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True, exist_ok=True)
    for split, first, count in (("train", 0, train), ("val", 100, val)):
        stems = [f"2007_{first + i:06d}" for i in range(count)]
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for i, stem in enumerate(stems):
            Image.fromarray(seeded.image(*size, first + i)).save(root / f"JPEGImages/{stem}.jpg")
            label = Image.fromarray(seeded.label_map(*size, 21, first + i), "P")
            label.putpalette([n for i in range(256) for n in (i, 255 - i, i // 2)])
            label.save(root / f"SegmentationClass/{stem}.png")
    return root


def write_full_size(root):
    """Seeded ViT-B/16 weights in vit_b16.safetensors, and a VOC folder in VOC2012."""
    shapes = json.loads((ROOT / "tests/golden/clip/shapes.json").read_text())["ViT-B/16"]
    weights = seeded.state_dict(shapes, 0)
    half = {k: v.astype(np.float16) if v.ndim > 1 else v for k, v in weights.items()}
    with (root / "vit_b16.safetensors").open("wb") as file:
        safetensors_file.write(file, half, {})
    write_voc(root / "VOC2012")
    return root
