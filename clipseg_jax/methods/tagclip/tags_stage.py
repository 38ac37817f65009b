"""The stage `tags` of TagCLIP: image labels from the frozen CLIP, for those that have none.

Spec tagclip, sections 2 to 7.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.annotate import annotate
from clipseg_jax.core.files import write_atomic, write_json
from clipseg_jax.core.mesh import make_mesh, replicate
from clipseg_jax.core.processes import wait
from clipseg_jax.core.writer import read_lines
from clipseg_jax.methods.tagclip.metrics import average_precision, relative_tags, tag_metrics
from clipseg_jax.methods.tagclip.model import TagCLIP, TagCLIPConfig
from clipseg_jax.stages.clip import (
    embed_words,
    image_tower,
    read_embeddings,
    whole_patches,
    word_lists,
)
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.image_classes import class_count, tags_path
from clipseg_jax.stages.label_list import write_label_list
from input_pipeline.batches import evaluation as pipeline
from input_pipeline.datasets.image_labels import has_annotations, image_labels
from input_pipeline.datasets.layout import Example

_EMBEDDINGS = "tag_embeddings.npy"


def tags(config: ConfigDict, workdir: Path) -> dict:
    """A line `<id> <class> ...` for each training image; goes on where it was.

    Where the dataset has image labels, mAP and F1 against them: metrics_tags.json.
    """
    split = config.dataset.train_split
    examples = find_dataset(config.dataset).index(config.dataset.root, split, labels=False)
    folder = workdir / "tags"
    known = _partial(folder)
    todo = [i for i in range(len(examples)) if i not in known]
    wait("tags begin")
    if todo:
        _score(config, workdir, folder, examples, todo)
    wait("tags")
    known = _partial(folder)
    scored = [i for i in range(len(examples)) if i in known]
    if not scored:
        raise ValueError(f"none of the {len(examples)} images of split {split} could be read")
    scores = np.asarray([known[i] for i in scored], np.float32)
    chosen = relative_tags(scores, config.tags.relative_threshold)
    chosen[np.arange(len(chosen)), scores.argmax(axis=1)] |= ~chosen.any(axis=1)
    names = [examples[i].name for i in scored]
    path = tags_path(config, workdir)
    record: dict[str, Any] = {
        "images": len(scored),
        "left_out": len(examples) - len(scored),
        "file": str(path),
        "classes_per_image": round(float(chosen.sum(axis=1).mean()), 2),
    }
    if has_annotations(find_dataset(config.dataset), config.dataset.root, split):
        record |= _figures(config, workdir, [examples[i] for i in scored], scores, chosen)
    if jax.process_index() == 0:
        lines = zip(names, (np.flatnonzero(row).tolist() for row in chosen), strict=True)
        write_label_list(path, lines)
        write_json(workdir / "metrics_tags.json", record)
        print(", ".join(f"{name} {value}" for name, value in record.items()))
    wait("tags written")
    return record


def _figures(
    config: ConfigDict, workdir: Path, examples: list[Example], scores: np.ndarray, chosen: Any
) -> dict[str, float]:
    """mAP, F1, precision and recall in percent, over the images with labels."""
    split = config.dataset.train_split
    labels, _ = image_labels(
        find_dataset(config.dataset), config.dataset.root, split, examples, cache=workdir,
        on_bad="skip",
    )  # fmt: skip
    truth = np.zeros(scores.shape, bool)
    for row, ids in zip(truth, labels, strict=True):
        row[list(ids)] = True
    shown = truth.any(axis=1)
    figures = tag_metrics(chosen[shown], truth[shown])
    made = {"mAP": average_precision(scores[shown], truth[shown]).mean()} | figures._asdict()
    return {name: round(100 * float(value), 2) for name, value in made.items()}


def _score(
    config: ConfigDict, workdir: Path, folder: Path, examples: list[Example], todo: list[int]
) -> None:
    """Appends a line for each image to this process's partial file."""
    model = _model(config, workdir)
    patch_px = model.visual.cfg.patch_px
    mesh = make_mesh(config.cams.devices)
    graph, state = nnx.split(model)
    state = replicate(mesh, state)

    @jax.jit
    def scores(state: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = nnx.merge(graph, state)
        return {"scores": model(batch["image"], batch["image_size"], batch["valid"]).scores}

    batches = pipeline.evaluation(
        find_dataset(config.dataset),
        [examples[i] for i in todo],
        batch_size=config.cams.batch_size,
        resize=functools.partial(whole_patches, patch_px=patch_px),
        max_buckets=config.cams.max_buckets,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
    )
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{jax.process_index()}.partial.jsonl"
    if own.exists():  # a kill may have cut its last line short
        whole = "".join(json.dumps(line) + "\n" for line in read_lines(own))
        write_atomic(own, lambda file: file.write(whole.encode("utf-8")))
    with own.open("a", encoding="utf-8") as file:

        def keep(index: int, made: dict, row: int, batch: Any) -> None:
            rounded = [float(np.float32(x)) for x in made["scores"]]
            file.write(json.dumps({"index": todo[index], "scores": rounded}) + "\n")
            file.flush()

        annotate(
            batches, lambda arrays, _: scores(state, arrays), keep, mesh=mesh, total=len(todo),
            desc="tags",
        )  # fmt: skip
    for one in batches.skipped:
        logging.warning("no tags of %s: %s", one.name, one.reason)


def _model(config: ConfigDict, workdir: Path) -> TagCLIP:
    classes, background = word_lists(config, synonyms=False)
    if len(classes) != class_count(config):
        raise ValueError(f"{len(classes)} prompts for {class_count(config)} classes")
    words = (*classes, *background)
    if not (workdir / _EMBEDDINGS).exists():
        embed_words(config, workdir, words, _EMBEDDINGS, templates_name=config.tags.templates)
        wait("tag words")
    rows = read_embeddings(config, workdir, words, _EMBEDDINGS)
    names = (
        *("affinity_blocks", "relative_threshold", "votes", "mix", "skip_empty_boxes"),
        "crops_at_once",
    )
    cfg = TagCLIPConfig(
        **{name: config.tags[name] for name in names}, temperature=config.cams.temperature
    )
    rest = rows[len(classes) :] if background else None
    # Unlike CLIP-ES, TagCLIP takes the stored positions as they are (spec tagclip, section 4).
    visual = image_tower(config, position_half_stored=config.tags.position_half_stored)
    return TagCLIP(visual, rows[: len(classes)], rest, cfg)


def _partial(folder: Path) -> dict[int, list[float]]:
    """Scores by image, of all processes' interrupted runs."""
    lines = [line for path in folder.glob("*.partial.jsonl") for line in read_lines(path)]
    return {line["index"]: line["scores"] for line in lines}
