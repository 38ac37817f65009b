"""Datasets by the name that configs give them, and the demo world as one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clipseg_jax.core.files import check_writable, write_json
from clipseg_jax.core.pictures import palette
from clipseg_jax.demo import world
from input_pipeline import datasets
from input_pipeline.datasets import Dataset

_DEMO: dict[str, Any] = {"split": "evaluation", "count": 240, "size": 128}

_BY_NAME = {
    "voc12_20": datasets.VOC12_20,
    "voc12_21": datasets.VOC12_21,
    "context_59": datasets.CONTEXT_59,
    "context_60": datasets.CONTEXT_60,
    "coco_stuff_164k": datasets.COCO_STUFF_164K,
    "ade20k": datasets.ADE20K,
    "cityscapes": datasets.CITYSCAPES,
}


def find_dataset(config: ConfigDict) -> Dataset:
    """The record that `config.name` means; "folder" and "demo_world" take `config.class_names`.

    Raises:
      ValueError: no such dataset.
    """
    if config.name in ("folder", "demo_world"):
        names = tuple(config.class_names)
        colours = [(int(r), int(g), int(b)) for r, g, b in palette(len(names))]
        background = names[:1] == ("background",)
        return datasets.folder(config.root, names, background=background, colours=colours)
    if config.name not in _BY_NAME:
        known = [*_BY_NAME, "folder", "demo_world"]
        raise ValueError(f"unknown dataset {config.name!r}; choose one of {known}")
    return _BY_NAME[config.name]


def prepare_demo_world(root: Path) -> None:
    """Paints the held-out pictures of the demo world into `root`, unless they are there."""
    about = root / "painted.json"
    if about.exists() and json.loads(about.read_text("utf-8")) == _DEMO:
        return
    check_writable(root)
    world.write_dataset(root, _DEMO["count"], _DEMO["size"], _DEMO["split"])
    write_json(about, _DEMO)  # last: a folder without it is painted again
