"""The recipe of ReCLIP and ReCLIP++: tags, rectification, distillation, and their tables.

Source: Wang and Kang 2024. Spec reclip.

    python -m clipseg_jax.main --config=configs/voc_reclippp.py --config.clip.weights=ViT-B/16

Hardware: one device for the published batch of 1, any number that divides 16 for distillation.
Hours: not measured. Paper, VOC: mIoU rectified 73.5, distilled 79.2. Ours: 83.6 and 84.4 on the
demo world; VOC not run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.maskclip import task as maskclip
from clipseg_jax.methods.reclip import task as rectifier_task
from clipseg_jax.methods.reclip.build import (
    build_distillation,
    build_rectifier,
    distilled,
    distilled_inference,
    rectified,
    rectified_inference,
)
from clipseg_jax.methods.reclip.distill_model import Distillation
from clipseg_jax.methods.reclip.model import ReCLIP, frozen_reference
from clipseg_jax.methods.reclip.tags import read_tags, tag_matrix
from clipseg_jax.methods.reclip.tags_stage import tags, tags_path
from clipseg_jax.models.clip.read_outs import read_out
from clipseg_jax.stages import training
from clipseg_jax.stages.clip import row_words, text
from clipseg_jax.stages.data import check_splits, find_dataset
from clipseg_jax.stages.evaluation import Evaluation, validation
from clipseg_jax.stages.network import recorded
from clipseg_jax.task import Task
from clipseg_jax.train import Evaluated, TrainResult
from input_pipeline.batches.training import random_view_batches
from weights_convert import RECLIP, load_imagenet, save_trained


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset's two splits are there; paints the demo world."""
    del workdir
    return check_splits(config.dataset, config.dataset.train_split, config.dataset.split)


def rectify(config: ConfigDict, workdir: Path) -> dict:
    """Trains the reference prompt and the head; writes rectified_{best,last}.safetensors."""
    if trained := config.rectifier.trained_weights:
        return {"skipped": f"config.rectifier.trained_weights is {trained}"}
    model, clip_sha256 = build_rectifier(config, workdir)
    mean, std = tuple(config.clip.mean), tuple(config.clip.std)

    def as_task(model: ReCLIP) -> Task:  # without the class filter, as published
        return rectifier_task.build(frozen_reference(model), mean=mean, std=std)

    run = _train(
        config,
        config.rectifier,
        rectifier_task.build(model, mean=mean, std=std),
        workdir,
        "rectify",
        evaluate=validation(lambda: Evaluation(config, rectified_inference(config)), as_task),
    )
    return _keep(config, workdir, run, "rectified", clip_sha256)


def evaluate_maskclip(config: ConfigDict, workdir: Path) -> dict:
    """MaskCLIP, the model before rectification, under the same protocol: metrics_maskclip.json."""
    model, _ = build_rectifier(config, workdir)
    read = read_out(config.rectifier.read_out)
    task = maskclip.build(model.visual, model.text_embeddings[...], read_out=read)
    return Evaluation(config, rectified_inference(config)).write(task, workdir, "_maskclip")


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """The rectified CLIP on the val split, with the class filter: metrics_rectified.json."""
    trained = rectified(config, workdir)
    return Evaluation(config, trained.cfg).write(trained.task, workdir, "_rectified")


def distill(config: ConfigDict, workdir: Path) -> dict:
    """Trains a DeepLab on the rectified CLIP's labels; writes distilled_{best,last}.safetensors."""
    if trained := config.student.trained_weights:
        return {"skipped": f"config.student.trained_weights is {trained}"}
    if not config.student.init_weights:
        raise ValueError(
            "no initial weights; pass --config.student.init_weights=resnet50_v1c "
            "(open-mmlab), or =random for random weights"
        )
    task, clip_sha256 = build_distillation(config, workdir)
    distillation: Any = task.model
    if config.student.init_weights != "random":
        load_imagenet(config.student.init_weights, distillation.student.backbone)

    def as_task(model: Distillation) -> Task:
        return task._replace(model=model)

    run = _train(
        config,
        config.student,
        task,
        workdir,
        "distill",
        unlabelled=True,
        evaluate=validation(lambda: Evaluation(config, distilled_inference(config)), as_task),
    )
    return _keep(config, workdir, run, "distilled", clip_sha256)


def evaluate_distilled(config: ConfigDict, workdir: Path) -> dict:
    """The student on the val split: metrics_distilled.json."""
    trained = distilled(config, workdir)
    return Evaluation(config, trained.cfg).write(trained.task, workdir, "_distilled")


STAGES = {
    "data": data,
    "text": text,
    "tags": tags,
    "evaluate_maskclip": evaluate_maskclip,
    "rectify": rectify,
    "evaluate": evaluate,
    "distill": distill,
    "evaluate_distilled": evaluate_distilled,
}


def _train(
    config: ConfigDict,
    section: ConfigDict,
    task: Task,
    workdir: Path,
    name: str,
    *,
    unlabelled: bool = False,
    evaluate: Callable[[nnx.Module, int], Evaluated],
) -> TrainResult:
    """Trains as a section (rectifier, student) says; the learning rate changes once an epoch.

    `unlabelled`: classes in the labels are hidden (-1); ignored pixels stay ignored.
    """
    dataset = find_dataset(config.dataset)
    data = random_view_batches(
        dataset,
        dataset.index(config.dataset.root, config.dataset.train_split),
        batch_size=section.batch_size,
        scale=tuple(section.scale_px),
        ratio_range=tuple(section.ratio_range),
        crop_hw=tuple(section.crop_px),
        saturation_wrap=section.saturation_wrap,
        unlabelled=unlabelled,
        reshuffle=section.reshuffle,
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
    )
    tags = _tag_matrix(config, workdir)
    an_epoch = data.steps_per_epoch
    total_steps = training.in_steps(section, "total", an_epoch)
    schedule_steps = section.get("schedule_epochs", 0) * an_epoch or total_steps
    return training.run(
        config,
        task,
        data,
        OptimConfig(**section.optim.to_dict(), hold_steps=an_epoch, schedule_steps=schedule_steps),
        workdir,
        name,
        total_steps=total_steps,
        evaluate_every_steps=training.in_steps(section, "evaluate_every", an_epoch),
        evaluate=evaluate,
        add=lambda batch: {**batch, "tags": tags[batch["index"]]},
    )


def _tag_matrix(config: ConfigDict, workdir: Path) -> np.ndarray:
    """(training images, classes) bool, from the stage `tags`."""
    path = tags_path(config, workdir)
    if not path.exists():
        raise ValueError(f"{path} is missing; run the stage `tags` first")
    classes = len(row_words(config))
    return tag_matrix(read_tags(path, classes), classes)


def _keep(
    config: ConfigDict, workdir: Path, trained: TrainResult, name: str, clip_sha256: str
) -> dict[str, Any]:
    """Writes NAME_best.safetensors and NAME_last.safetensors; returns the run's record."""
    for which, model in (("best", trained.best), ("last", trained.model)):
        if jax.process_index() == 0:
            save_trained(
                workdir / f"{name}_{which}.safetensors",
                RECLIP,
                model,
                classes=row_words(config),
                details={
                    "revision": config.revision,
                    "clip_sha256": clip_sha256,
                    "figures": trained.metrics,
                    **recorded(config),
                },
            )
    return trained.metrics
