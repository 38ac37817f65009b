"""The stage `tags` of TagCLIP: image labels from the frozen CLIP, for images that have none.

Spec tagclip, sections 2 to 7.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipseg_jax.annotate import annotate
from clipseg_jax.core.files import write_json
from clipseg_jax.core.json_lines import append_partial, json_line, read_partial
from clipseg_jax.core.mesh import make_mesh, on_mesh, replicate
from clipseg_jax.core.processes import barrier
from clipseg_jax.methods.tagclip.metrics import average_precision, relative_tags, tag_metrics
from clipseg_jax.methods.tagclip.model import TagCLIP, TagCLIPConfig
from clipseg_jax.stages.clip import (
    embed_words,
    load_image_tower,
    read_embeddings,
    whole_patches,
    word_lists,
)
from clipseg_jax.stages.data import find_dataset, readable_batches
from clipseg_jax.stages.image_classes import (
    class_count,
    multi_hot,
    read_image_classes,
    tag_list_path,
)
from clipseg_jax.stages.label_list import write_label_list
from clipseg_jax.stages.sections import options
from input_pipeline.datasets.image_labels import has_annotations
from input_pipeline.datasets.layout import Example

EMBEDDINGS = "tag_embeddings.npy"


def tags(config: ConfigDict, workdir: Path) -> dict:
    """Writes a label list with a line `<id> <class> ...` for each training image; resumes.

    Where the dataset has image labels, mAP and F1 against them are in metrics_tags.json.
    """
    split = config.dataset.train_split
    examples = find_dataset(config.dataset).index(config.dataset.root, split, labels=False)
    folder = workdir / "tags"
    classes = class_count(config)
    before = _partial_scores(folder, classes)
    todo = [i for i in range(len(examples)) if i not in before]
    barrier("tags begin")
    if todo:
        _score(config, workdir, folder, examples, todo)
    barrier("tags")
    all_scores = _partial_scores(folder, classes)
    scored = [i for i in range(len(examples)) if i in all_scores]
    if not scored:
        raise ValueError(f"none of the {len(examples)} images of split {split} could be read")
    scores = np.asarray([all_scores[i] for i in scored], np.float32)
    chosen = relative_tags(scores, config.tags.relative_threshold)
    chosen[np.arange(len(chosen)), scores.argmax(axis=1)] |= ~chosen.any(axis=1)
    names = [examples[i].name for i in scored]
    path = tag_list_path(config, workdir)
    record: dict[str, Any] = {
        "images": len(scored),
        "left_out": len(examples) - len(scored),
        "file": str(path),
        "classes_per_image": round(float(chosen.sum(axis=1).mean()), 2),
    }
    if has_annotations(find_dataset(config.dataset), config.dataset.root, split):
        record |= _metrics(config, workdir, [examples[i] for i in scored], scores, chosen)
    if jax.process_index() == 0:
        lines = zip(names, (np.flatnonzero(row).tolist() for row in chosen), strict=True)
        write_label_list(path, lines)
        write_json(workdir / "metrics_tags.json", record)
        print(", ".join(f"{name} {value}" for name, value in record.items()))
    barrier("tags written")
    return record


def _metrics(
    config: ConfigDict, workdir: Path, examples: list[Example], scores: np.ndarray, chosen: Any
) -> dict[str, float]:
    """mAP, F1, precision and recall in percent, over the images with labels."""
    labels, _ = read_image_classes(config, workdir, config.dataset.train_split, examples)
    truth = multi_hot(labels, scores.shape[1])
    shown = truth.any(axis=1)
    mean_ap = average_precision(scores[shown], truth[shown]).mean()
    metrics = {"mAP": mean_ap} | tag_metrics(chosen[shown], truth[shown])._asdict()
    return {name: round(100 * float(value), 2) for name, value in metrics.items()}


def _score(
    config: ConfigDict, workdir: Path, folder: Path, examples: list[Example], todo: list[int]
) -> None:
    """Appends a line for each image to this process's partial file."""
    model = build_model(config, workdir)
    patch_px = model.visual.cfg.patch_px
    mesh = make_mesh(config.run.devices)
    scores = score_step(model, mesh)
    state = replicate(mesh, nnx.state(model))
    batches = readable_batches(
        config,
        [examples[i] for i in todo],
        resize=functools.partial(whole_patches, patch_px=patch_px),
    )
    with append_partial(folder) as file:

        def keep(index: int, result: dict, row: int, batch: Any) -> None:
            rounded = [float(np.float32(x)) for x in result["scores"]]
            if not np.isfinite(rounded).all():
                raise ValueError(
                    f"{examples[todo[index]].name}: its class scores hold NaN or infinity; check "
                    f"the weights {config.clip.weights}"
                )
            file.write(json_line({"index": todo[index], "scores": rounded}))

        annotate(
            batches, lambda arrays, _: scores(state, arrays), keep, mesh=mesh, total=len(todo),
            desc="tags",
        )  # fmt: skip
    for example in batches.skipped:
        logging.warning("no tags of %s: %s", example.name, example.reason)


def score_step(model: TagCLIP, mesh: Mesh) -> Any:
    """The jitted step: (state, batch) -> `scores` (b, c)."""
    graph = nnx.graphdef(model)

    def scores(state: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = nnx.merge(graph, state)
        return {"scores": model(batch["image"], batch["image_size"], batch["valid"]).scores}

    return jax.jit(on_mesh(mesh, scores))


def build_model(config: ConfigDict, workdir: Path) -> TagCLIP:
    """The frozen CLIP with the embeddings of its words, which are made if there are none."""
    classes, background = word_lists(config, synonyms=False)
    if len(classes) != class_count(config):
        raise ValueError(f"{len(classes)} prompts for {class_count(config)} classes")
    words = (*classes, *background)
    if not (workdir / EMBEDDINGS).exists():
        embed_words(config, workdir, words, EMBEDDINGS, templates_name=config.tags.templates)
        barrier("tag words")
    text_embeddings = read_embeddings(config, workdir, words, EMBEDDINGS)
    cfg = options(
        TagCLIPConfig,
        config.tags,
        crops_at_once=config.run.crops_at_once,
        temperature=config.cams.temperature,
    )
    split_at = len(classes)
    of_background = text_embeddings[split_at:] if background else None
    # Unlike CLIP-ES, TagCLIP uses the stored position embeddings as they are (spec tagclip,
    # section 4).
    visual = load_image_tower(config, position_half_stored=config.tags.position_half_stored)
    return TagCLIP(visual, text_embeddings[:split_at], of_background, cfg)


def _partial_scores(folder: Path, classes: int) -> dict[int, list[float]]:
    """Index of an image -> its scores, from all processes and all interrupted runs."""

    def whole(scores: list) -> bool:
        return len(scores) == classes and all(type(score) is float for score in scores)

    lines = read_partial(folder, index=int, scores=list)
    return {line["index"]: line["scores"] for line in lines if whole(line["scores"])}
