"""What a recipe knows of each image beforehand: which classes it shows."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.label_list import read_label_list
from input_pipeline.datasets.class_sets import coco_stuff_coarse_ids, prompt_set
from input_pipeline.datasets.image_labels import image_labels
from input_pipeline.datasets.layout import Example

_SHOWN = 10  # problems that are logged

Present = dict[str, tuple[int, ...]]  # image name -> ids of its classes, in the labels' order


def class_count(config: ConfigDict) -> int:
    """Classes that image labels name."""
    if config.text.words:
        return len(prompt_set(config.text.words, synonyms=True).names)
    return len(find_dataset(config.dataset).foreground)


def tags_path(config: ConfigDict, workdir: Path) -> Path:
    """Where the stage `tags` writes: a line `<id> <class> <class> ...` for each image."""
    return workdir / f"{config.dataset.name}_{config.dataset.train_split}_tagclip.txt"


def present_classes(
    config: ConfigDict, workdir: Path, split: str, examples: Sequence[Example]
) -> tuple[Present, list[tuple[str, str]]]:
    """Classes of each example of a split that has any; (name, reason) of those without.

    From `config.labels.file`, a list; else `config.labels.source` says: from the stage "tags", or
    from the dataset's own "annotations".

    Raises:
      ValueError: the stage `tags` has not run, or a list of other classes.
    """
    listed = Path(config.labels.file) if config.labels.file else None
    if listed is None and config.labels.source == "tags":
        listed = tags_path(config, workdir)
        if not listed.exists():
            raise ValueError(f"{listed} is missing; run the stage `tags` first")
    if listed is not None:
        known = read_label_list(listed, class_count(config))
        found = {each.name: known.get(each.name, ()) for each in examples}
        problems = [(name, f"has no class in {listed}") for name, ids in found.items() if not ids]
    else:
        dataset, root = find_dataset(config.dataset), config.dataset.root
        labels, problems = image_labels(dataset, root, split, cache=workdir, on_bad="skip")
        found = {each.name: ids for each, ids in zip(examples, labels, strict=True)}
    log_unknown(problems)
    return {name: ids for name, ids in found.items() if ids}, problems


def log_unknown(problems: Sequence[tuple[str, str]]) -> None:
    """Warns of images (name, reason) that are left out: the first, and how many more."""
    for name, reason in problems[:_SHOWN]:
        logging.warning("left out %s: %s", name, reason)
    if len(problems) > _SHOWN:
        logging.warning("and %d more without known classes", len(problems) - _SHOWN)


def label_of_class(config: ConfigDict) -> np.ndarray:
    """(classes,) int32: what label maps call each class of the image labels."""
    if config.dataset.name == "coco_stuff_27":
        return coco_stuff_coarse_ids(raw=False)[: class_count(config)].astype(np.int32)
    return np.arange(class_count(config), dtype=np.int32) + int(config.cams.background)


def by_class_count(examples: Sequence[Example], present: Present) -> Iterator[tuple[int, list]]:
    """Examples in groups of similar class counts: (static bound, members), the most first.

    Bounds are powers of two: few compiled programs, at most half of the classes padding.
    """
    groups: dict[int, list[Example]] = collections.defaultdict(list)
    for each in examples:
        groups[1 << (len(present[each.name]) - 1).bit_length()].append(each)
    yield from sorted(groups.items(), reverse=True)


def padded_classes(
    names: Sequence[str], present: Present, bound: int
) -> tuple[np.ndarray, np.ndarray]:
    """Class ids (b, bound) int32 and which of them count (b, bound) bool."""
    classes, real = np.zeros((len(names), bound), np.int32), np.zeros((len(names), bound), bool)
    for row, name in enumerate(names):
        ids = present[name]
        classes[row, : len(ids)], real[row, : len(ids)] = ids, True
    return classes, real
