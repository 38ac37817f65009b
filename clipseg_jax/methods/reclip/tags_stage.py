"""The stage `tags`: which classes each training image shows, guessed by the plain CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clipseg_jax.core.json_lines import append_partial, json_line, partial_files, read_partial
from clipseg_jax.core.processes import barrier
from clipseg_jax.core.progress import progress_bar
from clipseg_jax.methods.reclip.tags import (
    Classifier,
    TagsConfig,
    read_tags,
    tag_images,
    write_tags,
)
from clipseg_jax.stages.clip import load_clip, read_embeddings
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.sections import options
from input_pipeline.datasets.images import BadFile, read_image

_NAMES = {"reclip": "ReCLIP", "reclip++": "ReCLIPPP"}  # in the published files' names


def tags_path(config: ConfigDict, workdir: Path) -> Path:
    """The file that rectification reads: the config's, or the one that the stage writes."""
    if config.tags.file:
        return Path(config.tags.file)
    name = f"{config.dataset.name}_pseudo_label_{_NAMES[config.model]}.json"
    return workdir / "tags" / name


def tags(config: ConfigDict, workdir: Path) -> dict:
    """A line of class ids for each training image; resumes after an interruption, in all processes.

    An image that can't be read gets no class, and is logged. With `config.tags.file` that file is
    checked against the dataset instead.
    """
    dataset = find_dataset(config.dataset)
    examples = dataset.index(config.dataset.root, config.dataset.train_split)
    path = tags_path(config, workdir)
    rows = read_embeddings(config, workdir)
    if not config.tags.file:
        done = _partial(path.parent, len(rows))
        process, count = jax.process_index(), jax.process_count()
        todo = [i for i in range(process, len(examples), count) if i not in done]
        if todo:
            _guess(config, path.parent, rows, [(i, examples[i].image_path) for i in todo])
        barrier("tags")
        if process == 0:
            done = _partial(path.parent, len(rows))
            write_tags(path, (done[i] for i in range(len(examples))))
            for left in partial_files(path.parent):
                left.unlink()
        barrier("tags written")
    tagged = read_tags(path, len(rows), len(examples))
    counts = [len(ids) for ids in tagged]
    return {
        "images": len(tagged),
        "file": str(path),
        "classes_per_image": round(float(np.mean(counts)), 2),
        "without_class": counts.count(0),
    }


def _guess(config: ConfigDict, folder: Path, rows: np.ndarray, todo: list) -> None:
    """Appends a line for each image to this process's partial file."""
    classifier = Classifier(load_clip(config).model, rows, config.run.crops_at_once)
    cfg = options(TagsConfig, config.tags)
    longest_px = find_dataset(config.dataset).longest_px

    def images() -> Iterator[tuple[int, np.ndarray | None]]:
        for index, path in todo:
            try:
                yield index, read_image(path, longest_px)
            except BadFile as error:
                logging.warning("no tags: %s", error)
                yield index, None

    with append_partial(folder) as file:
        stream = tag_images(images(), classifier, cfg)
        for index, ids in progress_bar(stream, total=len(todo), unit="image", desc="tags"):
            file.write(json_line({"index": index, "tags": ids}))


def _partial(folder: Path, classes: int) -> dict[int, list[int]]:
    """Tags by image, of all processes' interrupted runs."""
    lines = read_partial(folder, index=int, tags=list)
    ids = set(range(classes))
    return {line["index"]: line["tags"] for line in lines if _all_in(line["tags"], ids)}


def _all_in(tags: list, ids: set[int]) -> bool:
    return all(type(tag) is int and tag in ids for tag in tags)
