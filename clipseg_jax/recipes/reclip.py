"""The recipe of ReCLIP and ReCLIP++: tags, rectification, distillation, and their tables.

Source: Wang and Kang 2024. Spec reclip.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.reclip import ReCLIP, ReCLIPConfig, frozen_reference, reference_ids
from clipseg_jax.models.reclip_distill import Distillation
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from clipseg_jax.recipes import training
from clipseg_jax.recipes.clip import load_clip, read_embeddings, row_labels, row_words, text
from clipseg_jax.recipes.data import check_splits
from clipseg_jax.recipes.evaluation import Evaluation
from clipseg_jax.recipes.tags import tags, tags_path
from clipseg_jax.tags import read_tags, tag_matrix
from clipseg_jax.tasks import maskclip, reclip, reclip_distill
from clipseg_jax.tasks.base import Task
from clipseg_jax.train import Trained
from weights_convert import results
from weights_convert.build import install
from weights_convert.resnet_v1c import load_resnet_v1c


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset's two splits are there; paints the demo world."""
    del workdir
    return check_splits(config.dataset, config.dataset.train_split, config.dataset.split)


def rectify(config: ConfigDict, workdir: Path) -> dict:
    """Trains the reference prompt and the head; writes rectified_{best,last}.safetensors."""
    if config.rectify.weights:
        return {"skipped": f"config.rectify.weights is {config.rectify.weights}"}
    model, clip_sha256 = build_rectifier(config, workdir)
    mean, std = tuple(config.clip.mean), tuple(config.clip.std)

    def as_task(model: ReCLIP) -> Task:  # without the class filter, as published
        return reclip.build(frozen_reference(model), mean=mean, std=std)

    trained = training.run(
        config,
        config.rectify,
        reclip.build(model, mean=mean, std=std),
        workdir,
        "rectify",
        tags=_tag_matrix(config, workdir),
        evaluate=_validation(config, rectified_inference(config), as_task),
    )
    return _keep(config, workdir, trained, "rectified", clip_sha256)


def evaluate_maskclip(config: ConfigDict, workdir: Path) -> dict:
    """What is to be rectified, under the same protocol: metrics_maskclip.json."""
    model, _ = build_rectifier(config, workdir)
    task = maskclip.build(model.visual, model.text_embeddings[...])
    evaluation = Evaluation(config, rectified_inference(config), make_mesh(config.evaluate.devices))
    return evaluation.write(task, workdir, "_maskclip")


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """The rectified CLIP on the val split, with the class filter: metrics_rectified.json."""
    model, _ = load_rectified(config, workdir)
    mean, std = tuple(config.clip.mean), tuple(config.clip.std)
    threshold = config.inference.class_threshold
    task = reclip.build(model, mean=mean, std=std, threshold=threshold)
    evaluation = Evaluation(config, rectified_inference(config), make_mesh(config.evaluate.devices))
    return evaluation.write(task, workdir, "_rectified")


def distill(config: ConfigDict, workdir: Path) -> dict:
    """Trains a DeepLab on the rectified CLIP's labels; writes distilled_{best,last}.safetensors."""
    if config.distill.weights:
        return {"skipped": f"config.distill.weights is {config.distill.weights}"}
    if not config.distill.backbone:
        raise ValueError(
            "no backbone; pass --config.distill.backbone=resnet50_v1c-2cccc1ad.pth (open-mmlab), "
            "or =random to start from nothing"
        )
    task, clip_sha256 = build_distillation(config, workdir)
    distillation: Any = task.model
    if config.distill.backbone != "random":
        load_resnet_v1c(config.distill.backbone, distillation.student.backbone)

    def as_task(model: Distillation) -> Task:
        return task._replace(model=model)

    trained = training.run(
        config,
        config.distill,
        task,
        workdir,
        "distill",
        tags=_tag_matrix(config, workdir),
        unlabeled=True,
        evaluate=_validation(config, distilled_inference(config), as_task),
    )
    return _keep(config, workdir, trained, "distilled", clip_sha256)


def evaluate_distilled(config: ConfigDict, workdir: Path) -> dict:
    """The student on the val split: metrics_distilled.json."""
    task, _ = build_distillation(config, workdir)
    path = config.distill.weights or workdir / f"distilled_{config.distill.use}.safetensors"
    model: Any = task.model
    loaded = results.load_distillation(path, **_expected(config), visual=model.teacher.visual)
    install(model, loaded.arrays)
    evaluation = Evaluation(config, distilled_inference(config), make_mesh(config.evaluate.devices))
    return evaluation.write(task, workdir, "_distilled")


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


def build_rectifier(config: ConfigDict, workdir: Path) -> tuple[ReCLIP, str]:
    """An untrained rectifier around the config's CLIP, and the sha256 of that CLIP's file."""
    clip, tokenizer, meta = load_clip(config)
    if tokenizer is None:
        raise ValueError(f"{config.clip.weights} has no text tower; ReCLIP's prompt runs it")
    cfg = ReCLIPConfig(
        plus_plus=config.model == "reclip++",
        gumbel_scale=config.rectify.gumbel_scale,
        filter_scale=config.inference.filter_scale,
        norm_over=config.rectify.norm_over,
    )
    model = reclip.initial(
        clip,
        read_embeddings(config, workdir),
        reference_ids(tokenizer, row_words(config)),
        cfg,
        activation=config.clip.activation,
        temperature=config.rectify.temperature,
        rngs=nnx.Rngs(config.train.seed),
    )
    return model, meta["sha256"]


def load_rectified(config: ConfigDict, workdir: Path) -> tuple[ReCLIP, str]:
    """The trained rectifier, its reference computed, and the sha256 of the CLIP's file."""
    model, clip_sha256 = build_rectifier(config, workdir)
    path = config.rectify.weights or workdir / f"rectified_{config.rectify.use}.safetensors"
    loaded = results.load_rectification(path, **_expected(config), visual=model.visual)
    if loaded.record["classes"] is None:
        logging.warning(
            "%s does not say which state of the code it is of; it is read as %s. If its figures "
            "are far from the published ones, try the other state's config string",
            *(path, config.revision),
        )
    install(model, loaded.arrays)
    return frozen_reference(model), clip_sha256


def build_distillation(config: ConfigDict, workdir: Path) -> tuple[Task, str]:
    """The rectified teacher with a new student, and the sha256 of the CLIP's file.

    Raises:
      ValueError: a state of the code that distils nothing.
    """
    if config.model == "reclip++" and config.revision == "2025":
        raise ValueError(
            "the 2025 state of ReCLIP++ has no distillation; use the state of 2024 (the config "
            "without `:2025`)"
        )
    teacher, clip_sha256 = load_rectified(config, workdir)
    sizes = ("blocks", "width", "strides", "dilations", "dtype")
    cfg = DilatedResNetConfig(**{name: config.distill[name] for name in sizes})
    student = DeepLab(cfg, teacher.visual.cfg.embed_dim, rngs=nnx.Rngs(config.train.seed))
    names = ("teacher_scale", "test_scale", "teacher_bn", "aux", "aux_grad", "exp_logit_scale")
    choices = reclip_distill.DistillConfig(
        **{name: config.distill[name] for name in names},
        teacher_thresh=config.distill.teacher_threshold,
        test_thresh=config.distill.test_threshold,
    )
    return reclip_distill.build(teacher, student, choices), clip_sha256


def rectified_inference(config: ConfigDict) -> InferenceConfig:
    """Whole images at the rectification's scale and grey levels."""
    return InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        scale_px=tuple(config.inference.scale_px),
        row_labels=row_labels(config),
    )


def distilled_inference(config: ConfigDict) -> InferenceConfig:
    """Whole images at the distillation's scale; the student sees ImageNet's grey levels."""
    return InferenceConfig(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        scale_px=tuple(config.distill.scale_px),
        row_labels=row_labels(config),
    )


def _validation(
    config: ConfigDict, cfg: InferenceConfig, as_task: Callable[[Any], Task]
) -> Callable[[nnx.Module, int], dict[str, float]]:
    """What the loop calls: (model, step) -> figures of the whole val split."""
    evaluation: Evaluation | None = None

    def figures(model: nnx.Module, step: int) -> dict[str, float]:
        nonlocal evaluation
        del step
        if evaluation is None:
            evaluation = Evaluation(config, cfg, make_mesh(config.evaluate.devices))
        return evaluation.figures(as_task(model))

    return figures


def _tag_matrix(config: ConfigDict, workdir: Path) -> np.ndarray:
    """(training images, classes) bool, from the stage `tags`."""
    path = tags_path(config, workdir)
    if not path.exists():
        raise ValueError(f"{path} is missing; run the stage `tags` first")
    classes = len(row_words(config))
    return tag_matrix(read_tags(path, classes), classes)


def _expected(config: ConfigDict) -> dict[str, Any]:
    """What a result file must be of."""
    return {
        "plus_plus": config.model == "reclip++",
        "classes": row_words(config),
        "revision": config.revision,
    }


def _keep(
    config: ConfigDict, workdir: Path, trained: Trained, name: str, clip_sha256: str
) -> dict[str, Any]:
    """Writes NAME_best.safetensors and NAME_last.safetensors; returns the run's figures."""
    for which, model in (("best", trained.best), ("last", trained.model)):
        made: Any = model
        distilled = isinstance(made, Distillation)
        record = results.record(
            "distillation" if distilled else "rectification",
            **_expected(config),
            clip_sha256=clip_sha256,
            visual=made.teacher.visual if distilled else made.visual,
            figures=trained.figures,
        )
        if jax.process_index() == 0:
            arrays = results.kept_arrays(made)
            results.save_result(workdir / f"{name}_{which}.safetensors", arrays, record)
    return trained.figures
