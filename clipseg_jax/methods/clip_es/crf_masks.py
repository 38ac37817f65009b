"""The stages `masks` and `evaluate_masks`: CAMs through a dense CRF, to train on.

Spec clip_es, section 9; spec tagclip, section 8.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict
from rich.console import Console

from clipseg_jax.annotate import annotate
from clipseg_jax.core.files import write_json
from clipseg_jax.core.label_images import overlay, save_image, save_labels
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.metrics import confusion_on_host
from clipseg_jax.core.processes import barrier, sum_over_processes
from clipseg_jax.core.progress import progress_bar
from clipseg_jax.evaluate import Progress, headline, report
from clipseg_jax.methods.clip_es.cams import examples_with_cams
from clipseg_jax.methods.clip_es.stored_cams import batches_with_cams, cam_path
from clipseg_jax.ops.cam import cam_unary, pseudo_labels, upsample
from clipseg_jax.ops.crf import CRFConfig, dense_crf, wrapped_image
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.evaluation import UNSCORED, write_confusion
from clipseg_jax.stages.image_classes import label_of_class
from input_pipeline.batches.evaluation import Skipped
from input_pipeline.batches.loading import nearest, read_example
from input_pipeline.datasets.images import BadFile, read_label
from input_pipeline.datasets.layout import Example
from input_pipeline.writing import is_whole_png

_THREADS = 8


def mask_path(workdir: Path, name: str) -> Path:
    """The label map to train on: 255 where the CRF is unsure."""
    return workdir / "masks" / f"{name}.png"


def _labels_path(workdir: Path, name: str) -> Path:
    """The CRF's labels everywhere, which are scored."""
    return workdir / "crf" / f"{name}.png"


def _is_made(workdir: Path, name: str) -> bool:
    return all(is_whole_png(path(workdir, name)) for path in (mask_path, _labels_path))


def masks(config: ConfigDict, workdir: Path) -> dict:
    """CRF labels of every image with CAMs into crf/ and masks/; resumes after an interruption.

    They have the sizes of the files, also of images that were shrunk when they were read.
    """
    dataset = find_dataset(config.dataset)
    split = config.dataset.train_split
    examples = dataset.index(config.dataset.root, split, labels=False)
    with_cams = [each for each in examples if cam_path(workdir, each.name).exists()]
    if not with_cams:
        raise ValueError(f"no CAM of split {split}; run the stage `cams` first")
    todo = [each for each in with_cams if not _is_made(workdir, each.name)]
    barrier("masks begin")
    shown = {each.name for each in examples[: config.run.pictures or None]}
    colours = np.asarray(dataset.palette, np.uint8)
    coloured = config.run.palette
    clear = (0, 255) if dataset.background else (255,)

    def keep(
        example: Example, outputs: dict, image: np.ndarray, file_size: tuple[int, int]
    ) -> None:
        h, w = image.shape[:2]
        labels, mask = (outputs[which][:h, :w] for which in ("labels", "masks"))
        path = _labels_path(workdir, example.name)
        save_labels(path, nearest(labels, file_size), coloured=coloured)
        if config.run.pictures and example.name in shown:
            painted = overlay(image, mask, colours, config.run.opacity, clear=clear)
            save_image(workdir / "pictures_masks" / f"{example.name}.png", painted)
        # Written last: its presence means that the image is done.
        path = mask_path(workdir, example.name)
        save_labels(path, nearest(mask, file_size), coloured=coloured)

    skipped: list[Skipped] = []
    mesh = make_mesh(config.run.devices)
    crf = crf_step(config, mesh)
    patch_px = config.cams.patch_px
    for members, batches in batches_with_cams(config, workdir, todo, patch_px, skipped):

        def on_image(
            index: int, outputs: dict, row: int, batch: Any, members: list[Example] = members
        ) -> None:
            h, w = batch["image_size"][row]
            height, width = (int(side) for side in batch["original_size"][row])
            keep(members[index], outputs, batch["image"][row, :h, :w], (height, width))

        annotate(
            batches, lambda arrays, _: crf(arrays), on_image, mesh=mesh, total=len(members),
            desc="CRF",
        )  # fmt: skip
    for one in skipped:
        logging.warning("no mask of %s: %s", one.name, one.reason)
    barrier("masks made")
    written = sum(_is_made(workdir, each.name) for each in with_cams)
    return {"images": written, "left_out": len(examples) - written}


def crf_step(config: ConfigDict, mesh: Mesh) -> Any:
    """The jitted step: batch -> labels and masks (b, h, w) uint8, each device its own images."""
    cfg = CRFConfig(**config.crf.to_dict())
    background = config.cams.background
    names = jnp.asarray(label_of_class(config))

    def step(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image, real = batch["image"], batch["real"]
        shape = (image.shape[1], image.shape[2])
        maps = upsample(batch["maps"], batch["grids"], batch["image_size"], shape)
        unary = cam_unary(maps.astype(jnp.float16), real, background=background)
        if config.masks.image == "wrapped":
            image = wrapped_image(image)
        marginals = dense_crf(unary, image, cfg, sizes=batch["image_size"])
        labels = names[batch["classes"]]
        if background:
            labels = jnp.pad(labels, ((0, 0), (1, 0)))
        confident = functools.partial(pseudo_labels, marginals, labels)
        threshold = config.masks.confidence_threshold
        outputs = {"labels": confident(0.0), "masks": confident(threshold)}
        return {name: value.astype(jnp.uint8) for name, value in outputs.items()}

    if config.masks.image not in ("wrapped", "raw"):
        raise ValueError(f'masks.image {config.masks.image!r} must be "wrapped" or "raw"')
    rows = PartitionSpec(("data", "fsdp"))
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=rows, out_specs=rows))


def evaluate_masks(config: ConfigDict, workdir: Path) -> dict:
    """Mean IoU of the CRF's labels, unsure pixels included: metrics_masks.json.

    Images without label maps are not scored.
    """
    examples, missing = examples_with_cams(config, workdir)
    if examples[0].label_path is None:
        return UNSCORED
    dataset = find_dataset(config.dataset)
    classes = dataset.num_classes
    share = examples[jax.process_index() :: jax.process_count()]

    def count(example: Example) -> np.ndarray | None:
        try:
            image, truth = read_example(dataset, example)
            labels = read_label(_labels_path(workdir, example.name), classes)
            labels = nearest(labels, image.shape[:2])
        except BadFile as error:
            logging.warning("not scored: %s", error)
            return None
        if truth is None or truth.shape != labels.shape:
            logging.warning("not scored: %s has no label map of its size", example.name)
            return None
        return confusion_on_host(truth, labels, classes, dataset.ignore_label)

    total, images = np.zeros((classes, classes), np.int64), 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for counts in progress_bar(
            pool.map(count, share), total=len(share), unit="image", desc="evaluate masks"
        ):
            if counts is not None:
                total, images = total + counts, images + 1
    confusion, scored = sum_over_processes(total), int(sum_over_processes(np.asarray([images]))[0])
    console = Console(quiet=jax.process_index() != 0)
    figures = report(
        Progress(confusion, scored, left_out=len(examples) - scored),
        dataset.class_names,
        published=config.evaluate.published_metric,
        console=console,
    )
    if jax.process_index() == 0:
        write_confusion(workdir / "confusion_masks.npy", confusion)
        write_json(workdir / "metrics_masks.json", figures)
    left_out = len(examples) + missing - scored
    return {"images": scored, "left_out": left_out, **headline(figures)}
