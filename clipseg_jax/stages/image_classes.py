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
from clipseg_jax.stages.data import check_labelled, find_dataset, training_home
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


def tags_file(config: ConfigDict, split: str) -> Path | None:
    """A user's list of the classes of the training images: tags.txt beside them; None: no list."""
    if config.dataset.name != "folder" or split != "train":
        return None
    path = Path(config.dataset.root) / training_home(config.dataset) / "tags.txt"
    return path if path.is_file() else None


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
    names = () if config.text.words else dataset.foreground
    listed = read_label_list(label_list, class_count(config), names)
    # Users may list an image by its file's name.
    files = [f"{each.name}{Path(str(each.image_path)).suffix}" for each in examples]
    found = [listed.get(e.name, listed.get(file)) for e, file in zip(examples, files, strict=True)]
    problems = [
        (each.name, f"is not in {label_list}" if ids is None else NO_OBJECT)
        for each, ids in zip(examples, found, strict=True)
        if not ids
    ]
    return ImageLabels([ids or () for ids in found], problems)


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
    list that the stage `tags` wrote, "annotations" the dataset's own labels, or the `tags_file`.

    Raises:
      ValueError: the stage `tags` has not run, or a list for other classes.
    """
    label_list = Path(config.labels.file) if config.labels.file else None
    if label_list is None and config.labels.source == "tags":
        label_list = tag_list_path(config, workdir)
        if not label_list.exists():
            raise ValueError(f"{label_list} is missing; run the stage `tags` first")
    label_list = label_list or tags_file(config, split)
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
    label_list = Path(labels.file) if labels.file else tags_file(config, split)
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
        raise ValueError(unknown_classes(config, split, len(examples)))
    shown = multi_hot([classes[i] for i in kept], len(dataset.foreground))
    _warn_of_absent(dataset.foreground, shown, from_maps=maps and label_list is None)
    return [examples[i] for i in kept], shown


def check_label_maps(config: ConfigDict, workdir: Path, split: str, method: str) -> None:
    """Checks that a user's images have label maps to learn from; warns of classes in none of them.

    Raises:
      ValueError: there are no label maps; says where to put them.
    """
    if config.dataset.name != "folder":
        return
    check_labelled(config.dataset, split, method)
    dataset, root = find_dataset(config.dataset), config.dataset.root
    examples = dataset.index(root, split)
    read = image_labels(dataset, root, split, examples, maps=True, cache=workdir, on_bad="skip")
    _log_problems([(name, reason) for name, reason in read.problems if reason != NO_OBJECT])
    shown = multi_hot(read.labels, len(dataset.foreground))
    _warn_of_absent(dataset.foreground, shown, from_maps=True)


def _warn_of_absent(names: Sequence[str], shown: np.ndarray, *, from_maps: bool) -> None:
    """Warns of classes that no image shows, of images x classes."""
    absent = [name for name, column in zip(names, shown.T, strict=True) if not column.any()]
    if not absent:
        return
    some = ", ".join(absent[:_SHOWN]) + (" and others" if len(absent) > _SHOWN else "")
    binary = from_maps and len(absent) == len(names)
    hint = "; masks of 0 and 255 need 1 in place of 255, which means ignored" if binary else ""
    logging.warning("no training image shows %s%s", some, hint)


def unknown_classes(config: ConfigDict, split: str, images: int) -> str:
    """What is said where no image can be learned from, and what a user can do."""
    unknown = f"the classes of all {images} images of split {split} are unknown"
    if config.dataset.name != "folder":
        return unknown
    home = Path(config.dataset.root) / training_home(config.dataset)
    return (
        f"{unknown}; list them in {home / 'tags.txt'}, one image a line, such as `photo1: cat, "
        f"dog`, or put label maps into {Path(config.dataset.root) / 'train/labels'}"
    )


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
