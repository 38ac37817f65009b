"""The stage `masks`: pseudo labels as training makes them of crops, of whole images (val mode).

Spec weclip, section 10.4. Which classes an image shows must be known, as in training.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from clipseg_jax.annotate import annotate
from clipseg_jax.core.files import write_json
from clipseg_jax.core.label_images import save_labels
from clipseg_jax.core.mesh import make_mesh, on_mesh, replicate, shard_batch
from clipseg_jax.core.metrics import confusion_on_host
from clipseg_jax.core.processes import barrier, sum_over_processes
from clipseg_jax.evaluate import Progress, headline, report
from clipseg_jax.inference import InferenceConfig, network_size
from clipseg_jax.methods.weclip.build import inference, load_trained
from clipseg_jax.methods.weclip.model import WeCLIP
from clipseg_jax.methods.weclip.task import pseudo_labels
from clipseg_jax.ops.image import normalize
from clipseg_jax.ops.resize import resize_within
from clipseg_jax.stages.data import find_dataset, readable_batches
from clipseg_jax.stages.evaluation import write_confusion
from clipseg_jax.stages.image_classes import tagged_examples
from input_pipeline.batches.loading import nearest


def masks(config: ConfigDict, workdir: Path) -> dict:
    """Label maps of `config.masks.split` into masks/<id>.png, of the files' sizes.

    Those of images with label maps are scored, if `config.masks.score`: metrics_masks.json.

    Images that can't be read are left out and counted.
    """
    dataset, section = find_dataset(config.dataset), config.masks
    examples, tags = tagged_examples(config, workdir, section.split, label_maps=section.score)
    score = section.score and examples[0].label_path is not None
    model = load_trained(config, workdir)
    cfg = dataclasses.replace(
        inference(config), ratios=(1.0,), min_side_px=model.clip.visual.cfg.patch_px
    )
    batches = readable_batches(
        config,
        examples,
        network_size=functools.partial(network_size, cfg=cfg),
    )
    mesh = make_mesh(config.run.devices)
    label = label_step(model, cfg, mesh)
    state = replicate(mesh, nnx.state(model))
    classes = dataset.num_classes
    total, count = np.zeros((classes, classes), np.int64), 0

    def step(arrays: dict[str, jax.Array], batch: Any) -> dict[str, jax.Array]:
        shown = shard_batch(mesh, {"tags": tags[batch["index"]]})
        return {"labels": label(state, arrays | shown, batch["network_hw"])}

    def keep(index: int, outputs: dict, row: int, batch: Any) -> None:
        nonlocal count
        h, w = batch["image_size"][row]
        labels = outputs["labels"][:h, :w]
        path = workdir / "masks" / f"{examples[index].name}.png"
        height, width = (int(side) for side in batch["original_size"][row])
        save_labels(path, nearest(labels, (height, width)), coloured=config.run.palette)
        count += 1
        if score:
            truth = batch["label"][row, :h, :w]
            total[...] += confusion_on_host(truth, labels, classes, dataset.ignore_label)

    annotate(batches, step, keep, mesh=mesh, total=len(examples), desc="masks")
    for one in batches.skipped:
        logging.warning("no mask of %s: %s", one.name, one.reason)
    images = int(sum_over_processes(np.asarray([count]))[0])
    record: dict[str, Any] = {"images": images, "left_out": len(examples) - images}
    if score:
        console = Console(quiet=jax.process_index() != 0)
        confusion = sum_over_processes(total)
        figures = report(
            Progress(confusion, images, left_out=len(examples) - images),
            dataset.class_names,
            published=config.evaluate.published_metric,
            console=console,
        )
        if jax.process_index() == 0:
            write_confusion(workdir / "confusion_masks.npy", confusion)
            write_json(workdir / "metrics_masks.json", figures)
        record |= headline(figures)
    barrier("masks made")
    return record


def label_step(model: WeCLIP, cfg: InferenceConfig, mesh: Mesh) -> Any:
    """The jitted step: (state, batch with `tags`, static network shape) -> labels (b, h, w)."""
    graph = nnx.graphdef(model)
    mean, std = cfg.mean, cfg.std

    def label(state: Any, batch: dict[str, jax.Array], shape: tuple[int, int]) -> jax.Array:
        model: WeCLIP = nnx.merge(graph, state)
        sizes = batch["image_size"], batch["network_size"]
        images = resize_within(normalize(batch["image"], mean, std), *sizes, shape)
        size = batch["image"].shape[1], batch["image"].shape[2]
        labels = pseudo_labels(
            model, images, batch["tags"], size=size, sizes=sizes[1], label_sizes=sizes[0]
        )
        return labels.astype(jnp.uint8)

    return jax.jit(on_mesh(mesh, label), static_argnums=2)
