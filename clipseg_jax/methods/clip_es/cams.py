"""The stages `cams` and `evaluate_cams`: class activation maps of the training images.

Spec clip_es, sections 4 to 8.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from clipseg_jax.annotate import annotate
from clipseg_jax.core.checks import check_choice
from clipseg_jax.core.files import write_json
from clipseg_jax.core.mesh import make_mesh, on_mesh, replicate
from clipseg_jax.core.metrics import (
    SegmentationMetrics,
    confusion_matrix,
    metric_names,
    percent_text,
)
from clipseg_jax.core.processes import barrier, sum_over_processes
from clipseg_jax.evaluate import headline
from clipseg_jax.methods.clip_es.model import CLIPES, CLIPESConfig
from clipseg_jax.methods.clip_es.published_cams import write_cam
from clipseg_jax.methods.clip_es.stored_cams import (
    StoredCAM,
    batches_with_cams,
    cam_path,
    is_whole,
    write_cams,
)
from clipseg_jax.ops.cam import cam_labels, class_labels, min_max_normalize, upsample
from clipseg_jax.ops.image import valid_mask
from clipseg_jax.stages.clip import load_image_tower, read_embeddings, whole_patches, word_lists
from clipseg_jax.stages.data import find_dataset, readable_batches
from clipseg_jax.stages.evaluation import UNSCORED, write_confusion
from clipseg_jax.stages.image_classes import (
    Present,
    by_class_count,
    label_of_class,
    padded_classes,
    present_classes,
    unknown_classes,
)
from clipseg_jax.stages.sections import options
from input_pipeline.batches.evaluation import EvaluationBatches
from input_pipeline.datasets.layout import Example


def cams(config: ConfigDict, workdir: Path) -> dict:
    """Refined CAMs of every training image with known classes into cams/.

    Resumes after an interruption. Images that can't be read or whose classes are unknown are
    counted, and named in cams_problems.json.
    """
    split = config.dataset.train_split
    examples = find_dataset(config.dataset).index(config.dataset.root, split, labels=False)
    present, problems = present_classes(config, workdir, split, examples)
    if not present:
        raise ValueError(unknown_classes(config, split, len(examples)))
    barrier("cams known")
    todo = [e for e in examples if e.name in present and not is_whole(cam_path(workdir, e.name))]
    barrier("cams begin")
    bad = _make(config, workdir, todo, present) if todo else []
    for name, reason in bad:
        logging.warning("no CAM of %s: %s", name, reason)
    barrier("cams made")
    written = sum(is_whole(cam_path(workdir, each.name)) for each in examples)
    if jax.process_index() == 0:
        write_json(workdir / "cams_problems.json", dict([*problems, *bad]))
    return {
        "images": written,
        "left_out": len(examples) - written,
        "problems": len(problems) + len(bad),
    }


def _make(
    config: ConfigDict, workdir: Path, todo: list[Example], present: Present
) -> list[tuple[str, str]]:
    """Makes the CAMs of `todo`; (name, reason) of what this process could not read."""
    model = build_model(config, workdir)
    patch_px = model.visual.cfg.patch_px
    mesh = make_mesh(config.run.devices)
    refine = cam_step(config, model, mesh)
    state = replicate(mesh, nnx.state(model))

    bad: list[tuple[str, str]] = []
    for bound, members in by_class_count(todo, present):
        batches = readable_batches(
            config,
            members,
            resize=functools.partial(whole_patches, patch_px=patch_px),
        )

        def with_classes(
            batches: EvaluationBatches = batches,
            members: list[Example] = members,
            bound: int = bound,
        ) -> Iterator[dict[str, Any]]:
            for batch in batches:
                names = [members[i].name for i in batch["index"]]
                classes, real = padded_classes(names, present, bound)
                yield batch | {"classes": classes, "real": real}

        def keep(
            index: int, outputs: dict, row: int, batch: Any, members: list[Example] = members
        ) -> None:
            name = members[index].name
            h, w = batch["image_size"][row] // patch_px
            ids = np.asarray(present[name], np.int32)
            maps = outputs["maps"][: len(ids), :h, :w]
            if config.run.write_npy:
                height, width = (int(n) for n in batch["original_size"][row])
                full = [cv2.resize(m, (width, height)) for m in maps]
                write_cam(workdir / "cams_npy" / f"{name}.npy", ids, np.stack(full))
            write_cams(cam_path(workdir, name), StoredCAM(ids, maps))

        annotate(
            with_classes(),
            lambda arrays, _: refine(state, arrays),
            keep,
            mesh=mesh,
            total=len(members),
            desc=f"CAMs of up to {bound} classes",
        )
        bad += [(one.name, one.reason) for one in batches.skipped]
    return bad


def cam_step(config: ConfigDict, model: CLIPES, mesh: Mesh) -> Any:
    """The jitted step: (state, batch with `classes` and `real`) -> `maps` (b, k, hp, wp)."""
    graph = nnx.graphdef(model)

    def refine(state: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = nnx.merge(graph, state)
        cams = model(batch["image"], batch["image_size"], batch["classes"], batch["real"])
        maps = cams.refined if config.cams.refine else cams.cam
        grids = model.visual.grid_sizes(batch["image_size"])
        real = valid_mask(grids, (maps.shape[2], maps.shape[3]))
        return {"maps": min_max_normalize(maps, real)}

    return jax.jit(on_mesh(mesh, refine))


def build_model(config: ConfigDict, workdir: Path) -> CLIPES:
    """The frozen CLIP with the embeddings of the stage `text`."""
    classes, background = word_lists(config)
    rows = read_embeddings(config, workdir, (*classes, *background))
    cfg = options(CLIPESConfig, config.cams)
    first, last = rows[: len(classes)], rows[len(classes) :]
    return CLIPES(load_image_tower(config), first, last, cfg)


def examples_with_cams(config: ConfigDict, workdir: Path) -> tuple[list[Example], int]:
    """Examples of the mask split, with label maps, that have CAMs; how many others there are."""
    dataset = find_dataset(config.dataset)
    examples = dataset.index(config.dataset.root, config.dataset.mask_split)
    with_cams = [each for each in examples if cam_path(workdir, each.name).exists()]
    if not with_cams:
        raise ValueError(f"no CAM of split {config.dataset.mask_split}; run the stage `cams` first")
    return with_cams, len(examples) - len(with_cams)


def evaluate_cams(config: ConfigDict, workdir: Path) -> dict:
    """Mean IoU of the CAMs for each background threshold: metrics_cams.json (section 8).

    The best threshold is the one with the highest published metric. Images without label maps are
    not scored.
    """
    published = config.evaluate.published_metric
    check_choice("evaluate.published_metric", published, metric_names())
    thresholds = tuple(config.cams.thresholds) if config.cams.background else (1.0,)
    if not thresholds:
        raise ValueError("cams.thresholds is empty; give at least one background threshold")
    examples, missing = examples_with_cams(config, workdir)
    if examples[0].label_path is None:
        return UNSCORED
    dataset = find_dataset(config.dataset)
    names = jnp.asarray(label_of_class(config))
    classes = dataset.num_classes

    @functools.partial(jax.jit, static_argnums=1)
    def count(batch: dict[str, jax.Array], shape: tuple[int, int]) -> dict[str, jax.Array]:
        maps = upsample(batch["maps"], batch["grids"], batch["image_size"], shape)
        maps = maps.astype(jnp.float16)
        ids = names[batch["classes"]]
        if config.cams.background:  # which calls class c label c + 1
            labels = cam_labels(maps, batch["real"], ids - 1, thresholds)
        else:
            labels = class_labels(maps, batch["real"], ids)[None]
        one = functools.partial(confusion_matrix, classes=classes, ignore=dataset.ignore_label)
        each = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, 1))
        return {"counts": each(batch["label"], labels)}

    confusion = np.zeros((len(thresholds), classes, classes), np.int64)

    def add(index: int, outputs: dict, row: int, batch: Any) -> None:
        confusion[...] += outputs["counts"]

    mesh, skipped = make_mesh(config.run.devices), []  # type: ignore[var-annotated]
    for members, batches in batches_with_cams(
        config, workdir, examples, config.cams.patch_px, skipped
    ):
        annotate(
            batches,
            lambda arrays, batch: count(arrays, batch["bucket_hw"]),
            add,
            mesh=mesh,
            total=len(members),
            desc="evaluate CAMs",
        )
    counted = sum_over_processes(confusion)
    metrics = [SegmentationMetrics.from_confusion(one) for one in counted]
    summaries = [one.summary() for one in metrics]
    scores = [summary[published] for summary in summaries]
    best = int(np.argmax(np.nan_to_num(scores, nan=-1.0)))
    counts = {
        "images": len(examples) - len(skipped),
        "left_out": missing + len(skipped),
        "threshold": thresholds[best],
    }
    figures = {"published_metric": published, **summaries[best]}
    if jax.process_index() == 0:
        table = Table("background", published, title=f"CAMs of {counts['images']} images")
        for threshold, score in zip(thresholds, scores, strict=True):
            table.add_row(f"{threshold:g}", percent_text(score))
        table.caption = f"{published} {percent_text(scores[best])} (the mean that the paper prints)"
        Console().print(table)
        sweep = {
            f"{published}_by_threshold": dict(zip(map(str, thresholds), scores, strict=True)),
            "classes": metrics[best].per_class(dataset.class_names),
        }
        write_confusion(workdir / "confusion_cams.npy", counted[best])
        write_json(workdir / "metrics_cams.json", counts | figures | sweep)
    return counts | headline(figures)
