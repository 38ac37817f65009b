"""The recipe of WeCLIP and WTCLIP: a head trained on a frozen CLIP from image labels, in one stage.

Source: Zhang et al., "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic Segmentation",
2024. Specs weclip, wtclip.

    python -m clipseg_jax.main --config=configs/voc_weclip.py --config.clip.weights=ViT-B/16

Hardware: any number of devices that divides the batch of 4 (published: 1 GPU). Hours: not measured.
Paper, VOC: mIoU 74.9, with CRF 76.4. Ours: 67.1 and 75.4 on the demo world; VOC not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from clipseg_jax.core.files import read_json
from clipseg_jax.core.metrics import percent_text
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.core.processes import barrier, broadcast_from_main
from clipseg_jax.methods.weclip import task
from clipseg_jax.methods.weclip.build import build_model, inference, network, task_config
from clipseg_jax.methods.weclip.masks import masks
from clipseg_jax.methods.weclip.model import WeCLIP
from clipseg_jax.stages import training
from clipseg_jax.stages.clip import embed_words, word_lists
from clipseg_jax.stages.data import check_splits, find_dataset
from clipseg_jax.stages.evaluation import Evaluation, validation
from clipseg_jax.stages.image_classes import tagged_examples
from clipseg_jax.stages.inference import with_crf
from clipseg_jax.stages.network import recorded
from clipseg_jax.train import TrainResult
from input_pipeline.batches.weclip_views import image_boxes, random_placement_batches
from weights_convert import WECLIP as WECLIP_FORMAT
from weights_convert import save_trained

Batch = Mapping[str, np.ndarray]


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset's splits are there; paints the demo world."""
    del workdir
    dataset = config.dataset
    splits = (dataset.train_split, dataset.validation_split, dataset.split)
    return check_splits(dataset, *dict.fromkeys(splits))


def text(config: ConfigDict, workdir: Path) -> dict:
    """Embeddings of the classes and of the background words, in that order."""
    classes, background = word_lists(config)
    return embed_words(config, workdir, (*classes, *background))


def train(config: ConfigDict, workdir: Path) -> dict:
    """Trains the head; writes head_{last,best}.safetensors.

    Images that can't be read or whose classes are unknown are left out, and named in
    labels_problems.json.
    """
    head = config.head
    if head.trained_weights:
        return {"skipped": f"config.head.trained_weights is {head.trained_weights}"}
    every = head.evaluate_every_steps
    if head.checkpoint == "best" and not every:
        raise ValueError(
            "head.checkpoint=best needs evaluations during training; pass "
            "--config.head.evaluate_every_steps=N, or --config.head.checkpoint=last"
        )
    dataset = find_dataset(config.dataset)
    split = config.dataset.train_split
    examples, tags = tagged_examples(config, workdir, split, label_maps=False)
    batches = random_placement_batches(
        dataset,
        examples,
        crop_hw=tuple(head.crop_px),
        ratio_range=tuple(head.ratio_range),
        batch_size=head.batch_size,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
    )
    cfg = task_config(config)

    def add(batch: Batch) -> Batch:
        inputs = {"image": batch["image"], "index": batch["index"], "tags": tags[batch["index"]]}
        if cfg.padding == "ignored":
            inputs["image_box"] = image_boxes(batch["label"], dataset.ignore_label)
        return inputs

    model = build_model(config, workdir)

    def validate() -> Evaluation:  # at one scale
        cfg = dataclasses.replace(
            inference(config), scale_px=None, ratios=(1.0,), flip=False,
            min_side_px=model.clip.visual.cfg.patch_px,
        )  # fmt: skip
        return Evaluation(config, cfg, split=config.dataset.validation_split)

    trained = training.run(
        config,
        task.build(model, cfg),
        batches,
        OptimConfig(**head.optim.to_dict(), groups=task.GROUPS),
        workdir,
        "train",
        total_steps=head.total_steps,
        evaluate_every_steps=every,
        evaluate=validation(validate, lambda model: task.build(model, cfg)),
        add=add,
    )
    _keep(config, workdir, trained)
    return trained.metrics | {"images": len(examples)}


def _keep(config: ConfigDict, workdir: Path, trained: TrainResult) -> None:
    """Writes the last head, and the best one where any was scored."""
    names = find_dataset(config.dataset).class_names
    kept = {"last": trained.model} | ({"best": trained.best} if trained.metrics["best"] else {})
    for which, model in kept.items():
        assert isinstance(model, WeCLIP)
        if jax.process_index() == 0:
            path = workdir / f"head_{which}.safetensors"
            details = {"figures": trained.metrics, **recorded(config)}
            save_trained(path, WECLIP_FORMAT, model, classes=names, details=details)
    barrier("head written")


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """The val split without a CRF: metrics.json."""
    trained = network(config, workdir)
    return Evaluation(config, trained.cfg).write(trained.task, workdir)


def evaluate_crf(config: ConfigDict, workdir: Path) -> dict:
    """The same with a dense CRF after it: metrics_crf.json. Prints both."""
    trained = network(config, workdir)
    cfg = with_crf(trained.cfg, config, "raw")
    record = Evaluation(config, cfg).write(trained.task, workdir, "_crf")
    published = config.evaluate.published_metric
    if published not in record:  # images without label maps
        return record
    plain = workdir / "metrics.json"
    if not broadcast_from_main(plain.exists()):
        evaluate(config, workdir)
        barrier("metrics")
    remedy = "delete it and evaluate.done.json and run again: it is evaluated again"
    without = read_json(plain, remedy).get(published)
    if jax.process_index() == 0:
        shown = percent_text(without), percent_text(record[published])
        print(f"{published} without CRF {shown[0]}, with CRF {shown[1]}")
    return record | {f"{published}_without_crf": without}


STAGES = {
    "data": data,
    "text": text,
    "train": train,
    "evaluate": evaluate,
    "evaluate_crf": evaluate_crf,
    "masks": masks,
}
