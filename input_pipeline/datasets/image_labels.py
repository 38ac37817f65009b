"""Image labels: which classes each image shows, from the dataset's own annotations.

VOC: all objects of `Annotations/<id>.xml`, difficult and truncated ones included, in order of first
appearance, as in CLIP-ES. COCO: all objects and crowds of instances_*.json, ids ascending; a split
list with ids on its lines, `<stem> <id> <id> ...` (CLIP-ES's, TagCLIP's, or made by `prepare`),
takes precedence and keeps its order. Datasets without annotations: the labels in the label maps,
ascending; for other datasets on request (WeCLIP).

Ids start at 0 with the first class that is not the background: id i is `dataset.foreground[i]`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from input_pipeline.datasets import records
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.class_sets import class_set
from input_pipeline.datasets.coco import AnnotatedImage, read_instances
from input_pipeline.datasets.images import BadFile, read_label
from input_pipeline.datasets.layout import Annotations, Example
from input_pipeline.places import place
from input_pipeline.text_lists import one_line, read_list
from input_pipeline.walk import open_regular
from input_pipeline.writing import CannotWrite, write_atomic

_FORMAT = 1
_THREADS = min(16, os.cpu_count() or 1)
_SHOWN = 5  # bad images named in an error, and their unknown classes
NO_OBJECT = "shows no object of the dataset's classes"


class ImageLabels(NamedTuple):
    """Image labels of a list of examples.

    Attributes:
      labels: class ids of each example; () if it has none that can be used.
      problems: (name, reason) of the examples without class ids, or with unknown ones left out.
    """

    labels: list[tuple[int, ...]]
    problems: list[tuple[str, str]]


class _Labels(NamedTuple):
    """The class ids of one example, and its problem, "" if there is none."""

    ids: tuple[int, ...]
    problem: str = ""


class _Source(NamedTuple):
    """Where labels come from.

    Attributes:
      open: returns a function that reads the labels of an example.
      file: the file that an example's labels are in; None: they are not cached.
    """

    open: Callable[[], Callable[[Example], _Labels]]
    file: Callable[[Example], Path | None]


def image_labels(
    dataset: Dataset,
    root: str | os.PathLike[str],
    split: str,
    examples: Sequence[Example] | None = None,
    *,
    maps: bool = False,
    cache: str | os.PathLike[str] | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
) -> ImageLabels:
    """Class ids of the images of a split.

    Args:
      root: see `dataset.index`; a folder of records must have been built with image labels.
      examples: examples of the split; None: all, as `dataset.index` returns them.
      maps: read the label maps, even if there are annotations; the examples must have theirs.
      cache: folder for a small file with the labels. An example is read again if the file that its
        labels come from has changed; examples with problems are not cached.
      on_bad: "raise" stops if a file is missing or damaged or names an unknown class; "skip"
        reports these in `problems`, and leaves out only the unknown classes. Images without objects
        are reported in `problems` in both cases and are not errors.

    Raises:
      BadFile: with "raise", an image's labels cannot be read; in both cases, COCO's file of objects
        or a list cannot.
      FileNotFoundError: see `dataset.index`; or there are no annotations.
    """
    annotations = None if maps else dataset.layout.split(split).annotations
    if examples is None:
        examples = dataset.index(root, split, labels=annotations is None)
    source = _source(dataset, root, split, annotations)
    classes = _classes(dataset, annotations)
    name = f"image_labels_{dataset.name}_{split}{'_maps' * maps}.json"
    store = None if cache is None else place(cache) / name
    cached = {} if store is None else _load(store, classes)
    # Stamps are taken before reading: a file that changes meanwhile is read again the next time.
    stamps = {each.name: _stamp(source.file(each)) for each in examples} if store else {}
    labels_of: dict[str, _Labels] = {}
    for each in examples:
        stamp, ids = cached.get(each.name, (None, ()))
        if stamp is not None and stamp == stamps[each.name]:
            labels_of[each.name] = _Labels(ids)
    new = [each for each in examples if each.name not in labels_of]
    if new:
        with ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(source.open(), new)
            shown = tqdm(read, "image labels", len(new), unit="file", disable=None)
            labels_of.update((each.name, labels) for each, labels in zip(new, shown, strict=True))
    bad = [(each.name, problem) for each in examples if (problem := labels_of[each.name].problem)]
    if store is not None:
        good = {
            each.name: (stamps[each.name], labels_of[each.name].ids)
            for each in new
            if stamps[each.name] and not labels_of[each.name].problem
        }
        if good:
            _save(store, classes, {**cached, **good})
    if bad and on_bad == "raise":
        named = "".join(f"\n  {name}: {why}" for name, why in bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise BadFile(
            f"split {split}: {len(bad)} of {len(examples)} images have image labels that cannot "
            f"be used; repair these files, or take the images off the list:{named}{more}"
        )
    labels = [labels_of[each.name].ids for each in examples]
    problems = [
        (each.name, labels_of[each.name].problem or NO_OBJECT)
        for each in examples
        if labels_of[each.name].problem or not labels_of[each.name].ids
    ]
    return ImageLabels(labels, problems)


def read_from_label_maps(dataset: Dataset, split: str, *, maps: bool = False) -> bool:
    """Whether `image_labels` reads the label maps of a split, so that its examples need them."""
    return maps or dataset.layout.split(split).annotations is None


def has_annotations(dataset: Dataset, root: str | os.PathLike[str], split: str) -> bool:
    """Whether the dataset's own annotations of image labels are there."""
    annotations = dataset.layout.split(split).annotations
    stored = records.find_records(root, dataset.layout.folders)
    if annotations is None:
        return False
    if stored is not None:
        return "image_labels" in records.read_index(stored)["splits"].get(split, {})
    home = dataset.layout.resolve(root)
    listed = annotations.listed and _ids_of_list(dataset, home, split, annotations) is not None
    return listed or any(
        (home / name).exists() for name in (annotations.xml, annotations.instances) if name
    )


def _classes(dataset: Dataset, annotations: Annotations | None) -> tuple[str, ...]:
    """Names of the classes by their ids."""
    return (
        class_set(annotations.classes).names
        if annotations and annotations.classes
        else dataset.foreground
    )


def _source(
    dataset: Dataset, root: str | os.PathLike[str], split: str, annotations: Annotations | None
) -> _Source:
    if annotations is None:
        return _Source(lambda: functools.partial(_of_map, dataset), _label_file)
    names = _classes(dataset, annotations)
    stored = records.find_records(root, dataset.layout.folders)
    if stored is not None:
        return _Source(lambda: _of_records(stored, split, len(names)), lambda _: None)
    home = dataset.layout.resolve(root)
    listed = _ids_of_list(dataset, home, split, annotations) if annotations.listed else None
    if listed is not None:
        return _Source(lambda: functools.partial(_of_list, listed, len(names)), lambda _: None)
    if annotations.instances is not None:
        path = home / annotations.instances
        return _Source(
            lambda: functools.partial(_of_instances, read_instances(path), path.name),
            lambda _: path,
        )
    if annotations.xml is not None and (home / annotations.xml).is_dir():
        folder, ids = home / annotations.xml, {name: i for i, name in enumerate(names)}
        return _Source(
            lambda: functools.partial(_of_xml, folder, ids),
            lambda example: folder / f"{example.name}.xml",
        )
    lists = [name for part in dataset.layout.split(split).parts for name in part.lists]
    expected = (
        f"folder {home / annotations.xml}"
        if annotations.xml
        else f"list with ids {home / lists[0]}"
    )
    raise FileNotFoundError(
        f"no image labels: there is no {expected}; unpack the dataset's annotations there. "
        f"{dataset.layout.remedy}".rstrip()
    )


def _of_xml(folder: Path, ids: dict[str, int], example: Example) -> _Labels:
    try:
        with open_regular(folder / f"{example.name}.xml") as file:
            objects = ElementTree.parse(file).getroot().iterfind("object")
            names = dict.fromkeys((each.findtext("name") or "").strip() for each in objects)
    except FileNotFoundError:
        return _Labels((), f"there is no {folder.name}/{example.name}.xml")
    except (ElementTree.ParseError, OSError, ValueError) as error:
        return _Labels((), f"cannot read {folder.name}/{example.name}.xml ({one_line(error)})")
    unknown = [f"{name!r:.60}" for name in names if name not in ids][:_SHOWN]
    problem = f"unknown class {', '.join(unknown)}, left out" if unknown else ""
    return _Labels(tuple(ids[name] for name in names if name in ids), problem)


def _of_instances(images: dict[str, AnnotatedImage], file: str, example: Example) -> _Labels:
    image = images.get(example.name)
    if image is None:
        return _Labels((), f"is not in {file}")
    unknown = ", ".join(str(number) for number in sorted(set(image.unknown))[:_SHOWN])
    return _Labels(image.labels, f"unknown category {unknown}, left out" if unknown else "")


def _of_list(listed: dict[str, tuple[int, ...]], classes: int, example: Example) -> _Labels:
    if example.name not in listed:
        return _Labels((), "is not in the list of image labels")
    ids = listed[example.name]
    unknown = ", ".join([str(i) for i in ids if not 0 <= i < classes][:_SHOWN])
    problem = f"unknown class {unknown}, left out" if unknown else ""
    return _Labels(tuple(i for i in ids if 0 <= i < classes), problem)


def _of_map(dataset: Dataset, example: Example) -> _Labels:
    if example.label_path is None:
        return _Labels((), "has no label map")
    try:
        ids = np.unique(
            read_label(
                example.label_path,
                dataset.num_classes,
                reduce_zero_label=dataset.reduce_zero_label,
                ignore_label=dataset.ignore_label,
            )
        )
    except BadFile as error:
        return _Labels((), str(error))
    shown = ids[ids != dataset.ignore_label] - int(dataset.background)
    return _Labels(tuple(int(i) for i in shown if i >= 0))


def _label_file(example: Example) -> Path | None:
    return example.label_path if isinstance(example.label_path, Path) else None


def _of_records(home: str, split: str, classes: int) -> Callable[[Example], _Labels]:
    """Reads the image labels that `records_build` stored in the index."""
    stored = records.read_index(home)["splits"].get(split, {})
    if "image_labels" not in stored:
        raise FileNotFoundError(
            f"no image labels: {home} was built from a folder without annotations; build the "
            f"records again from one that has them"
        )
    ids = dict(zip(stored["names"], map(tuple, stored["image_labels"]), strict=True))
    return functools.partial(_of_list, ids, classes)


def _ids_of_list(
    dataset: Dataset, home: Path, split: str, annotations: Annotations
) -> dict[str, tuple[int, ...]] | None:
    """Stem -> ids of the split's lists; None: a list is missing, or the lists have no ids."""
    ids_of: dict[str, tuple[int, ...]] = {}
    for part in dataset.layout.split(split).parts:
        path = home / (dataset.layout.list_of(home, part) or "")
        if not path.exists():
            return None
        for stem, *words in read_list(path):
            if not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
                return None
            ids = [int(word) for word in words]
            if annotations.ids:
                ids = [annotations.ids[i] if i < len(annotations.ids) else 255 for i in ids]
            ids_of[stem] = tuple(dict.fromkeys(ids))
    return ids_of if any(ids_of.values()) else None


def _stamp(path: Path | None) -> str | None:
    """Size and modification time of a file, to detect changes; None: there is no such file."""
    try:
        stat = None if path is None else os.stat(path)
    except OSError:
        return None
    return stat and f"{stat.st_size}-{stat.st_mtime_ns}"


def _load(store: Path, classes: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (stamp, ids) from the cache; empty if it is for other classes, or damaged."""
    try:
        with open_regular(store) as file:
            content = json.load(file)
        if (content["format"], content["classes"]) != (_FORMAT, list(classes)):
            return {}
        labels = {name: (stamp, tuple(ids)) for name, (stamp, ids) in content["labels"].items()}
        if not all(
            type(i) is int and 0 <= i < len(classes) for _, ids in labels.values() for i in ids
        ):
            raise ValueError
        return labels
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        logging.getLogger(__name__).warning("%s: damaged; reading the image labels again", store)
        return {}


def _save(store: Path, classes: Sequence[str], labels: dict) -> None:
    content = {"format": _FORMAT, "classes": classes, "labels": labels}
    try:
        encoded = json.dumps(content, separators=(",", ":")).encode()
        write_atomic(store, lambda file: file.write(encoded), sync=False)
    except CannotWrite as error:  # the cache only saves time
        logging.getLogger(__name__).warning("image labels are not cached: %s", error)
