"""Datasets by the name that configs give them, and the demo world as one of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from clipseg_jax.core.files import check_writable, write_json
from clipseg_jax.core.label_images import palette
from clipseg_jax.core.processes import barrier
from clipseg_jax.demo import world
from input_pipeline.datasets import catalog as datasets
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.layout import Part, Split

# Folder below the root -> what of the world is painted there.
_DEMO: dict[str, dict[str, Any]] = {
    "": {"split": "evaluation", "count": 240, "size": 128},
    "train": {"split": "train", "count": 1200, "size": 128},
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
        made = datasets.folder(
            config.root,
            names,
            background=background,
            colours=colours,
            reduce_zero_label=config.reduce_zero_label,
        )
        # Pictures to train on lie in train/, with or without labels.
        labels = "train/labels" if (Path(config.root) / "train/labels").is_dir() else None
        train = Split((Part("train/images", labels),))
        layout = dataclasses.replace(made.layout, splits=(("train", train), *made.layout.splits))
        return dataclasses.replace(made, layout=layout)
    if config.name not in datasets.BY_NAME:
        known = [*datasets.BY_NAME, "folder", "demo_world"]
        raise ValueError(f"unknown dataset {config.name!r}; choose one of {known}")
    return datasets.BY_NAME[config.name]


def unseen_labels(config: ConfigDict) -> tuple[int, ...]:
    """The labels held out, ascending: of the classes that `config.unseen` names, or as published.

    Raises:
      ValueError: an unknown name, or a dataset without a published split.
    """
    dataset, names = find_dataset(config), tuple(config.unseen)
    if unknown := [name for name in names if name not in dataset.class_names]:
        raise ValueError(
            f"unseen classes {unknown} are none of {dataset.name}'s {list(dataset.class_names)}"
        )
    labels = [dataset.class_names.index(name) for name in names] or dataset.unseen
    if not labels:
        raise ValueError(
            f"which classes of {dataset.name} are unseen? It holds no class out; name some: "
            "--config.dataset.unseen=\"('cat','dog')\""
        )
    return tuple(sorted(labels))


def check_splits(config: ConfigDict, *splits: str) -> dict:
    """Stage: every file of the splits is where it should be; paints the demo world if it is meant.

    Raises:
      FileNotFoundError: something is missing; says what was looked for, and where.
    """
    if config.name == "demo_world" and jax.process_index() == 0:
        for folder, about in _DEMO.items():
            _paint(Path(config.root) / folder, about)
    barrier("data")
    dataset = find_dataset(config)
    counts = {split: len(dataset.index(config.root, split)) for split in splits}
    images = counts if len(counts) > 1 else next(iter(counts.values()))
    return {"dataset": dataset.name, "images": images, "classes": dataset.num_classes}


def _paint(root: Path, about: dict[str, Any]) -> None:
    """Paints pictures of the demo world into `root`, unless they are there."""
    record = root / "painted.json"
    if record.exists() and json.loads(record.read_text("utf-8")) == about:
        return
    check_writable(root)
    world.write_dataset(root, about["count"], about["size"], about["split"])
    write_json(record, about)  # last: a folder without it is painted again
