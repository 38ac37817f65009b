"""Image labels: which classes each image shows, from a label list or from the dataset itself.

CLIP-ES, TagCLIP and WeCLIP learn from these. Where a dataset's own image labels come from is in
`input_pipeline.datasets.image_labels`, the form of label lists in `label_list`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clipseg_jax.core.files import write_json
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.label_list import read_label_list
from input_pipeline.datasets.class_sets import prompt_set
from input_pipeline.datasets.image_labels import (
    NO_OBJECT,
    ImageLabels,
    image_labels,
    read_from_label_maps,
)
from input_pipeline.datasets.layout import Example

_SHOWN = 10  # problems that are logged

Present = dict[str, tuple[int, ...]]  # image name -> ids of its classes, in the labels' order


def class_count(config: ConfigDict) -> int:
    """Number of classes that the image labels name."""
    if config.text.words:
        return len(prompt_set(config.text.words, synonyms=True).names)
    return len(find_dataset(config.dataset).foreground)


def label_of_class(config: ConfigDict) -> np.ndarray:
    """(classes,) int32: the label in label maps of each class of the image labels."""
    count = class_count(config)
    if labels := find_dataset(config.dataset).image_class_labels:
        return np.asarray(labels[:count], np.int32)
    return np.arange(count, dtype=np.int32) + int(config.cams.background)


def tag_list_path(config: ConfigDict, workdir: Path) -> Path:
    """The label list that TagCLIP's stage `tags` writes."""
    return workdir / f"{config.dataset.name}_{config.dataset.train_split}_tagclip.txt"


def read_image_classes(
    config: ConfigDict,
    workdir: Path,
    split: str,
    examples: Sequence[Example],
    *,
    label_list: Path | None = None,
    maps: bool = False,
) -> ImageLabels:
    """The classes of each example of a split, and (name, reason) of those without any.

    Args:
      label_list: a list to read; None: the dataset's own image labels.
      maps: the dataset's label maps count, whatever annotations it has.

    Raises:
      ValueError: a list for other classes.
    """
    dataset, root = find_dataset(config.dataset), config.dataset.root
    if label_list is None:
        if read_from_label_maps(dataset, split, maps=maps):
            labelled = {each.name: each for each in dataset.index(root, split)}
            examples = [labelled[each.name] for each in examples]
        return image_labels(dataset, root, split, examples, maps=maps, cache=workdir, on_bad="skip")
    listed = read_label_list(label_list, class_count(config))
    labels = [listed.get(each.name, ()) for each in examples]
    problems = [
        (each.name, NO_OBJECT if each.name in listed else f"is not in {label_list}")
        for each, ids in zip(examples, labels, strict=True)
        if not ids
    ]
    return ImageLabels(labels, problems)


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Class ids of each image -> (n, classes) bool."""
    shown = np.zeros((len(labels), classes), bool)
    for row, ids in zip(shown, labels, strict=True):
        row[list(ids)] = True
    return shown


def present_classes(
    config: ConfigDict, workdir: Path, split: str, examples: Sequence[Example]
) -> tuple[Present, list[tuple[str, str]]]:
    """CLIP-ES's: classes of each example that shows any; (name, reason) of the other examples.

    From the list `config.labels.file`; without one `config.labels.source` decides: "tags" is the
    list that the stage `tags` wrote, "annotations" the dataset's own labels.

    Raises:
      ValueError: the stage `tags` has not run, or a list for other classes.
    """
    label_list = Path(config.labels.file) if config.labels.file else None
    if label_list is None and config.labels.source == "tags":
        label_list = tag_list_path(config, workdir)
        if not label_list.exists():
            raise ValueError(f"{label_list} is missing; run the stage `tags` first")
    labels, problems = read_image_classes(config, workdir, split, examples, label_list=label_list)
    _log_problems(problems)
    named = zip(examples, labels, strict=True)
    return {example.name: ids for example, ids in named if ids}, problems


def tagged_examples(
    config: ConfigDict, workdir: Path, split: str, *, label_maps: bool
) -> tuple[list[Example], np.ndarray]:
    """WeCLIP's: a split's examples with known classes, and these classes (n, c) bool.

    An image that is known to show no class is kept, as background. One whose classes are unknown is
    left out, and named in labels_problems.json.

    Args:
      label_maps: the examples get their label maps.

    Raises:
      ValueError: an unknown source, a list for other classes, or no image is left.
    """
    dataset, labels = find_dataset(config.dataset), config.labels
    if labels.source not in ("masks", "annotations"):
        raise ValueError(f'labels.source {labels.source!r} must be "masks" or "annotations"')
    examples = dataset.index(config.dataset.root, split, labels=label_maps)
    label_list = Path(labels.file) if labels.file else None
    maps = read_from_label_maps(dataset, split, maps=labels.source == "masks")
    classes, problems = read_image_classes(
        config, workdir, split, examples, label_list=label_list, maps=maps
    )
    unknown = {name: reason for name, reason in problems if reason != NO_OBJECT}
    _log_problems(list(unknown.items()))
    if jax.process_index() == 0:
        write_json(workdir / "labels_problems.json", unknown)
    kept = [i for i, each in enumerate(examples) if each.name not in unknown]
    if not kept:
        raise ValueError(f"the classes of all {len(examples)} images of split {split} are unknown")
    shown = multi_hot([classes[i] for i in kept], len(dataset.foreground))
    return [examples[i] for i in kept], shown


def _log_problems(problems: Sequence[tuple[str, str]]) -> None:
    """Warns of images (name, reason) that are left out: the first ones, and how many more."""
    for name, reason in problems[:_SHOWN]:
        logging.warning("left out %s: %s", name, reason)
    if len(problems) > _SHOWN:
        logging.warning("and %d more without known classes", len(problems) - _SHOWN)


def by_class_count(examples: Sequence[Example], present: Present) -> Iterator[tuple[int, list]]:
    """Examples in groups of similar class counts: (static bound, members), largest bound first.

    Bounds are powers of two: few compiled programs, at most half of the classes are padding.
    """
    groups: dict[int, list[Example]] = collections.defaultdict(list)
    for each in examples:
        groups[1 << (len(present[each.name]) - 1).bit_length()].append(each)
    yield from sorted(groups.items(), reverse=True)


def padded_classes(
    names: Sequence[str], present: Present, bound: int
) -> tuple[np.ndarray, np.ndarray]:
    """Class ids (b, bound) int32, and which of them are not padding (b, bound) bool."""
    classes, real = np.zeros((len(names), bound), np.int32), np.zeros((len(names), bound), bool)
    for row, name in enumerate(names):
        ids = present[name]
        classes[row, : len(ids)], real[row, : len(ids)] = ids, True
    return classes, real
