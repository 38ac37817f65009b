"""Image labels: which classes each picture shows, from what the dataset is published with.

Of VOC every object of `Annotations/<id>.xml` counts, difficult and truncated ones too, in the order
of first appearance (CLIP-ES keeps it). Of COCO every object and crowd of instances_*.json counts,
ids ascending; a list with ids on its lines, `<stem> <id> <id> ...` (CLIP-ES's, TagCLIP's, or made
by `prepare`), counts before it, in its own order. A dataset without any of these has the labels
that its label maps show, ascending; any other has, if they are asked for (WeCLIP asks).

Ids begin at 0 with the first class that isn't the background: id i is `dataset.foreground[i]`.
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
from input_pipeline.datasets.coco import Picture, read_instances
from input_pipeline.datasets.images import BadFile, read_label
from input_pipeline.datasets.layout import Annotations, Example, read_list
from input_pipeline.writing import CannotWrite, write_atomic

_FORMAT = 1
_THREADS = min(16, os.cpu_count() or 1)
_SHOWN = 5  # bad pictures named in the error
NO_OBJECT = "shows no object of the dataset's classes"


class ImageLabels(NamedTuple):
    """Image labels of a list of examples.

    Attributes:
      labels: of each example its class ids; () if there are none that can be used.
      problems: (name, reason) of the examples that have none, or not all.
    """

    labels: list[tuple[int, ...]]
    problems: list[tuple[str, str]]


class _Labels(NamedTuple):
    """One example's ids, and what is wrong with it, if anything is."""

    ids: tuple[int, ...]
    wrong: str = ""


class _Source(NamedTuple):
    """Opens what reads an example's labels; and the file they are in, None: not to be cached."""

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
    """Which classes the pictures of a split show.

    Args:
      root: as for `dataset.index`; a folder of records must have been built with image labels.
      examples: some of the split's; None: all, as `dataset.index` gives them.
      maps: what the label maps show counts, whatever else there is; then examples need theirs.
      cache: folder for a small file with what was read. An example is read again when the file that
        its labels come from has changed, and what could not be read is never kept.
      on_bad: "skip" goes on where a file is missing or damaged or names an unknown class, which
        `problems` then tell; an unknown class is left out, the known ones beside it stay. Pictures
        without any object are among the problems either way, and no error.

    Raises:
      BadFile: with "raise", a picture's labels can't be read; in any case, COCO's file of objects
        or a list can't.
      FileNotFoundError: see `dataset.index`; or there are no annotations at all.
    """
    about = None if maps else dataset.layout.split(split).annotations
    if examples is None:
        examples = dataset.index(root, split, labels=about is None)
    source, classes = _source(dataset, root, split, about), _classes(dataset, about)
    name = f"image_labels_{dataset.name}_{split}{'_maps' * maps}.json"
    store = None if cache is None else Path(cache, name)
    kept = {} if store is None else _load(store, classes)
    # The stamp is taken before the file is read: if it changes meanwhile, it is read once more.
    stamps = {each.name: _stamp(source.file(each)) for each in examples} if store else {}
    found: dict[str, _Labels] = {}
    for each in examples:
        stamp, ids = kept.get(each.name, (None, ()))
        if stamp is not None and stamp == stamps[each.name]:
            found[each.name] = _Labels(ids)
    new = [each for each in examples if each.name not in found]
    if new:
        with ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(source.open(), new)
            shown = tqdm(read, "image labels", len(new), unit="file", disable=None)
            found.update((each.name, labels) for each, labels in zip(new, shown, strict=True))
    bad = [(each.name, found[each.name].wrong) for each in examples if found[each.name].wrong]
    if store is not None:
        good = {
            each.name: (stamps[each.name], found[each.name].ids)
            for each in new
            if stamps[each.name] and not found[each.name].wrong
        }
        if good:
            _save(store, classes, {**kept, **good})
    if bad and on_bad == "raise":
        named = "".join(f"\n  {name}: {why}" for name, why in bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise BadFile(
            f"split {split}: {len(bad)} of {len(examples)} pictures have image labels that can't "
            f'be used; mend these files, or leave them out (on_bad="skip"):{named}{more}'
        )
    labels = [found[each.name].ids for each in examples]
    problems = [
        (each.name, found[each.name].wrong or NO_OBJECT)
        for each in examples
        if found[each.name].wrong or not found[each.name].ids
    ]
    return ImageLabels(labels, problems)


def read_from_label_maps(dataset: Dataset, split: str, *, maps: bool = False) -> bool:
    """Whether `image_labels` reads the label maps of a split, which its examples then need."""
    return maps or dataset.layout.split(split).annotations is None


def has_annotations(dataset: Dataset, root: str | os.PathLike[str], split: str) -> bool:
    """Whether there are the annotations of image labels that the dataset is published with."""
    about = dataset.layout.split(split).annotations
    stored = records.find(root, dataset.layout.folders)
    if about is None:
        return False
    if stored is not None:
        return "image_labels" in records.read_index(stored)["splits"].get(split, {})
    home = dataset.layout.resolve(root)
    listed = about.listed and _ids_of_list(dataset, home, split, about) is not None
    return listed or any((home / name).exists() for name in (about.xml, about.instances) if name)


def _classes(dataset: Dataset, about: Annotations | None) -> tuple[str, ...]:
    """Names of the classes that the ids mean."""
    return class_set(about.classes).names if about and about.classes else dataset.foreground


def _source(
    dataset: Dataset, root: str | os.PathLike[str], split: str, about: Annotations | None
) -> _Source:
    if about is None:
        return _Source(lambda: functools.partial(_of_map, dataset), _label_file)
    stored = records.find(root, dataset.layout.folders)
    if stored is not None:
        return _Source(lambda: _of_records(stored, split), lambda _: None)
    home, names = dataset.layout.resolve(root), _classes(dataset, about)
    listed = _ids_of_list(dataset, home, split, about) if about.listed else None
    if listed is not None:
        return _Source(lambda: functools.partial(_of_list, listed, len(names)), lambda _: None)
    if about.instances is not None:
        path = home / about.instances
        return _Source(
            lambda: functools.partial(_of_instances, read_instances(path), path.name),
            lambda _: path,
        )
    if about.xml is not None and (home / about.xml).is_dir():
        folder, ids = home / about.xml, {name: i for i, name in enumerate(names)}
        return _Source(
            lambda: functools.partial(_of_xml, folder, ids),
            lambda example: folder / f"{example.name}.xml",
        )
    lists = [name for part in dataset.layout.split(split).parts for name in part.lists]
    wanted = f"folder {home / about.xml}" if about.xml else f"list with ids {home / lists[0]}"
    raise FileNotFoundError(
        f"no image labels: there is no {wanted}; unpack the dataset's annotations there. "
        f"{dataset.layout.remedy}".rstrip()
    )


def _of_xml(folder: Path, ids: dict[str, int], example: Example) -> _Labels:
    try:
        objects = ElementTree.parse(folder / f"{example.name}.xml").getroot().iterfind("object")
        names = dict.fromkeys((each.findtext("name") or "").strip() for each in objects)
    except FileNotFoundError:
        return _Labels((), f"there is no {folder.name}/{example.name}.xml")
    except (ElementTree.ParseError, OSError, ValueError) as error:
        return _Labels((), f"can't read {folder.name}/{example.name}.xml ({error})")
    unknown = [repr(name) for name in names if name not in ids]
    wrong = f"unknown class {', '.join(unknown)}, left out" if unknown else ""
    return _Labels(tuple(ids[name] for name in names if name in ids), wrong)


def _of_instances(pictures: dict[str, Picture], file: str, example: Example) -> _Labels:
    picture = pictures.get(example.name)
    if picture is None:
        return _Labels((), f"is not in {file}")
    unknown = ", ".join(str(number) for number in sorted(set(picture.unknown)))
    return _Labels(picture.labels, f"unknown category {unknown}, left out" if unknown else "")


def _of_list(listed: dict[str, tuple[int, ...]], classes: int, example: Example) -> _Labels:
    if example.name not in listed:
        return _Labels((), "is not in the list of image labels")
    ids = listed[example.name]
    unknown = ", ".join(str(i) for i in ids if not 0 <= i < classes)
    wrong = f"unknown class {unknown}, left out" if unknown else ""
    return _Labels(tuple(i for i in ids if 0 <= i < classes), wrong)


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


def _of_records(home: str, split: str) -> Callable[[Example], _Labels]:
    """Reads what `records_build` has put into the index."""
    stored = records.read_index(home)["splits"][split]
    if "image_labels" not in stored:
        raise FileNotFoundError(
            f"no image labels: {home} was built from a folder without annotations; build the "
            f"records again from one that has them"
        )
    ids = dict(zip(stored["names"], map(tuple, stored["image_labels"]), strict=True))
    return lambda example: _Labels(ids[example.name])


def _ids_of_list(
    dataset: Dataset, home: Path, split: str, about: Annotations
) -> dict[str, tuple[int, ...]] | None:
    """Stem -> ids of the split's lists; None: there are none, or they have no ids."""
    found: dict[str, tuple[int, ...]] = {}
    for part in dataset.layout.split(split).parts:
        path = home / (dataset.layout.list_of(home, part) or "")
        if not path.is_file():
            return None
        for stem, *words in read_list(path):
            if not all(word.isdigit() for word in words):
                return None
            ids = [int(word) for word in words]
            if about.ids:
                ids = [about.ids[i] if i < len(about.ids) else 255 for i in ids]
            found[stem] = tuple(dict.fromkeys(ids))
    return found if any(found.values()) else None


def _stamp(path: Path | None) -> str | None:
    """Changes when a file does; None: there is no such file."""
    try:
        about = None if path is None else os.stat(path)
    except OSError:
        return None
    return about and f"{about.st_size}-{about.st_mtime_ns}"


def _load(store: Path, classes: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the cache holds for these classes; nothing if it is of others, or damaged."""
    try:
        content = json.loads(store.read_bytes())
        if (content["format"], content["classes"]) != (_FORMAT, list(classes)):
            return {}
        return {name: (stamp, tuple(ids)) for name, (stamp, ids) in content["labels"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        logging.getLogger(__name__).warning("%s: damaged; the image labels are read again", store)
        return {}


def _save(store: Path, classes: Sequence[str], labels: dict) -> None:
    content = {"format": _FORMAT, "classes": classes, "labels": labels}
    try:
        encoded = json.dumps(content, separators=(",", ":")).encode()
        write_atomic(store, lambda file: file.write(encoded), sync=False)
    except CannotWrite as error:  # it only saves time
        logging.getLogger(__name__).warning("image labels are not kept: %s", error)
