"""Datasets by their names in configs, among them the demo world."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import logging
from ml_collections import ConfigDict

from clipseg_jax.core.files import check_writable, read_json, write_json
from clipseg_jax.core.label_images import palette
from clipseg_jax.core.processes import barrier
from clipseg_jax.demo import world
from input_pipeline.datasets.catalog import BY_NAME, Dataset, folder
from input_pipeline.datasets.layout import Example, Part, Split

if TYPE_CHECKING:
    from input_pipeline.batches.evaluation import EvaluationBatches

# Folder below the root -> the images of the demo world that are painted there.
_DEMO: dict[str, dict[str, Any]] = {
    "": {"split": "evaluation", "count": 240, "size": 128},
    "train": {"split": "train", "count": 1200, "size": 128},
}


def find_dataset(config: ConfigDict) -> Dataset:
    """The record called `config.name`; "folder" and "demo_world" use `config.class_names`.

    Raises:
      ValueError: there is no such dataset.
    """
    if config.name in ("folder", "demo_world"):
        names = tuple(config.class_names)
        colours = [(int(r), int(g), int(b)) for r, g, b in palette(len(names))]
        background = names[:1] == ("background",)
        plain = folder(
            config.root,
            names,
            background=background,
            colours=colours,
            reduce_zero_label=config.reduce_zero_label,
            labels=_labels_below(config.root, ""),
        )
        # Without a folder train/ the images are learned from, never their labels.
        home = training_home(config)
        train = Part(f"{home}images", _labels_below(config.root, home) if home else None)
        splits = (("train", Split((train,))), *plain.layout.splits)
        layout = dataclasses.replace(plain.layout, splits=splits)
        return dataclasses.replace(plain, layout=layout, longest_px=config.get("longest_px"))
    if config.name not in BY_NAME:
        choices = [*BY_NAME, "folder", "demo_world"]
        raise ValueError(f"unknown dataset {config.name!r}; choose one of {choices}")
    return dataclasses.replace(BY_NAME[config.name], longest_px=config.get("longest_px"))


def training_home(config: ConfigDict) -> str:
    """Where a user's folder has its training images, below the root: "train/", or "" for itself."""
    return "train/" if config.name == "demo_world" or (Path(config.root) / "train").is_dir() else ""


def _labels_below(root: str, home: str) -> str | None:
    """The folder of the label maps beside the images of `home`; None: there is none."""
    return f"{home}labels" if (Path(root) / home / "labels").is_dir() else None


def check_labelled(config: ConfigDict, split: str, method: str) -> None:
    """Checks that a split of a user's folder has label maps, from which `method` learns.

    Raises:
      ValueError: it has none; says where to put them.
    """
    if config.name != "folder" or find_dataset(config).index(config.root, split)[0].label_path:
        return
    home = training_home(config) or "train/"
    raise ValueError(
        f"{method} learns from label maps, and {config.root} has none to learn from: put the "
        f"training images into {config.root}/{home}images and a PNG of the same stem for each into "
        f"{config.root}/{home}labels (docs/own_images.md)"
    )


def unseen_labels(config: ConfigDict) -> tuple[int, ...]:
    """The labels held out in zero-shot training, ascending.

    Those of the classes that `config.unseen` names; if it is empty, the published ones.

    Raises:
      ValueError: an unknown class name, or the dataset has no published unseen classes.
    """
    dataset, names = find_dataset(config), tuple(config.unseen)
    if unknown := [name for name in names if name not in dataset.class_names]:
        raise ValueError(
            f"unseen classes {unknown} are not among {dataset.name}'s {list(dataset.class_names)}"
        )
    labels = [dataset.class_names.index(name) for name in names] or dataset.unseen
    if not labels:
        raise ValueError(
            f"{dataset.name} has no published unseen classes; name some: "
            "--config.dataset.unseen=\"('cat','dog')\""
        )
    return tuple(sorted(labels))


def check_splits(config: ConfigDict, *splits: str) -> dict:
    """Stage: checks that all files of the splits exist; paints the demo world if needed.

    The labels of the demo world are those of `config.class_names`.

    Raises:
      ValueError: the demo world has no such class.
      FileNotFoundError: files are missing; names them and the expected folder layout.
    """
    if config.name == "demo_world":
        labelled = _demo_names(tuple(config.class_names))
        # The usual names are not recorded: worlds that were painted before have no record of any.
        names = {"names": [*labelled]} if labelled != world.CLASSES else {}
        if jax.process_index() == 0:
            for below, settings in _DEMO.items():
                _paint(Path(config.root) / below, settings | names)
    barrier("data")
    dataset = find_dataset(config)
    if config.name == "folder" and jax.process_index() == 0:
        _say_what_is_missing(config, dataset, splits)
    counts = {split: len(dataset.index(config.root, split)) for split in splits}
    images = counts if len(counts) > 1 else next(iter(counts.values()))
    return {"dataset": dataset.name, "images": images, "classes": dataset.num_classes}


def _demo_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names that the label maps of the demo world are painted with: all but "background"."""
    names = names[names[:1] == ("background",) :]
    known = {*world.CLASSES, *(f"{colour} {k}" for colour in world.COLOURS for k in world.CLASSES)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"classes {unknown} are not in the demo world; name some of {[*world.CLASSES]}, each "
            f"alone or with a colour of {[*world.COLOURS]}"
        )
    return names


def _say_what_is_missing(config: ConfigDict, dataset: Dataset, splits: Sequence[str]) -> None:
    """Prints what a user's folder is used without, which may be a name that is misspelt."""
    if dataset.index(config.root, config.split)[0].label_path is None:
        print(f"{config.root}: no labels/, so {config.split} is segmented and not scored")
    if "train" in splits and not training_home(config):
        print(f"{config.root}: no train/, so images/ is what is learned from, without labels")


def readable_batches(
    config: ConfigDict,
    examples: Sequence[Example],
    *,
    network_size: Callable[[int, int], tuple[int, int]] | None = None,
    resize: Callable[[int, int], tuple[int, int]] | None = None,
    corruption: tuple[str, int] | None = None,
    full_size: bool = False,
) -> EvaluationBatches:
    """This process's batches of `examples`, as the config's `dataset` and `run` say.

    Images that can't be read are skipped, and listed in the batches' `skipped`. For the other
    arguments see `evaluation_batches`.

    Args:
      full_size: images are not shrunk, whatever `config.dataset.longest_px` says.
    """
    # With OpenCV, of the extra "data"; trained networks are loaded without it.
    from input_pipeline.batches.evaluation import evaluation_batches

    dataset = find_dataset(config.dataset)
    return evaluation_batches(
        dataclasses.replace(dataset, longest_px=None) if full_size else dataset,
        examples,
        batch_size=config.run.batch_size,
        network_size=network_size,
        resize=resize,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
        corruption=corruption,
        max_buckets=config.run.max_buckets,
    )


def _paint(root: Path, settings: dict[str, Any]) -> None:
    """Paints images of the demo world into `root`, unless they exist."""
    record = root / "painted.json"
    if record.exists():
        try:
            if read_json(record, "painting again") == settings:
                return
        except ValueError as error:
            logging.warning("%s", error)
    check_writable(root)
    world.write_dataset(root, **settings)
    write_json(record, settings)  # last: a folder without it is painted again
