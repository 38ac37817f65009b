"""The models of ReCLIP's recipe, as its config and its earlier stages make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.core.modules import initialised
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.reclip import distill_task, task
from clipseg_jax.methods.reclip.model import ReCLIP, ReCLIPConfig, frozen_reference, reference_ids
from clipseg_jax.models.clip import Tokenizer, l2_normalize, with_class_token
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from clipseg_jax.stages.clip import load_clip, read_embeddings, row_labels, row_words
from clipseg_jax.stages.network import Network
from clipseg_jax.stages.sections import options
from clipseg_jax.task import Task
from input_pipeline.places import place
from weights_convert import RECLIP, install, load_trained
from weights_convert.trained.reclip.format import METHODS


def build_rectifier(config: ConfigDict, workdir: Path) -> tuple[ReCLIP, str]:
    """An untrained rectifier around the config's CLIP, and the sha256 of that CLIP's file."""
    clip, tokenizer, meta = load_clip(config)
    with_class_token(clip.visual, "ReCLIP")
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"{config.clip.weights} has no text tower; ReCLIP's prompt runs it")
    cfg = ReCLIPConfig(
        plus_plus=config.model == "reclip++",
        gumbel_scale=config.rectifier.gumbel_scale,
        filter_scale=config.inference.filter_scale,
        norm_over=config.rectifier.norm_over,
        read_out=config.rectifier.read_out,
    )
    model = task.init_reclip(
        clip,
        read_embeddings(config, workdir),
        reference_ids(tokenizer, row_words(config)),
        cfg,
        activation=config.clip.activation,
        temperature=config.rectifier.temperature,
        rngs=nnx.Rngs(config.train.seed),
    )
    return model, meta["sha256"]


def load_rectified(config: ConfigDict, workdir: Path) -> tuple[ReCLIP, str]:
    """The trained rectifier, its reference computed, and the sha256 of the CLIP's file."""
    model, clip_sha256 = build_rectifier(config, workdir)
    rectifier = config.rectifier
    path = rectifier.trained_weights or workdir / f"rectified_{rectifier.checkpoint}.safetensors"
    loaded = load_trained(
        path,
        RECLIP,
        classes=row_words(config),
        expected=expected(config, "rectification"),
        visual=model.visual,
    )
    if loaded.record["classes"] is None:
        logging.warning(
            "%s does not say which state of the code it is of; it is read as %s. If its figures "
            "are far from the published ones, try the other state's config string",
            *(path, config.revision),
        )
    trained_on = loaded.record.get("read_out", "value")
    if trained_on != config.rectifier.read_out:
        raise ValueError(
            f"{path} was trained on the read-out {trained_on!r} of CLIP; set "
            f"--config.rectifier.read_out={trained_on}, not {config.rectifier.read_out}"
        )
    install(model, loaded.arrays, complete=("reference.prompt", "head."))
    return frozen_reference(model), clip_sha256


def build_distillation(config: ConfigDict, workdir: Path) -> tuple[Task, str]:
    """The rectified teacher with a new student, and the sha256 of the CLIP's file.

    Raises:
      ValueError: a state of the published code without distillation.
    """
    _check_distillation(config)
    teacher, clip_sha256 = load_rectified(config, workdir)
    return distillation(config, teacher), clip_sha256


def _check_distillation(config: ConfigDict) -> None:
    if config.model == "reclip++" and config.revision == "2025":
        raise ValueError(
            "the 2025 state of ReCLIP++ has no distillation; use the state of 2024 (the config "
            "without `:2025`)"
        )


def distillation(config: ConfigDict, teacher: ReCLIP) -> Task:
    """A teacher with a new student of the config's sizes."""
    sizes = options(DilatedResNetConfig, config.student)
    features = teacher.visual.cfg.embed_dim
    student = initialised(lambda rngs: DeepLab(sizes, features, rngs=rngs), config.train.seed)
    cfg = options(distill_task.DistillConfig, config.student)
    return distill_task.build(teacher, student, cfg)


def rectified_inference(config: ConfigDict) -> InferenceConfig:
    """Whole images at the rectification's scale, normalised as the config's CLIP."""
    return InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        scale_px=tuple(config.inference.scale_px),
        embedding_labels=row_labels(config),
    )


def distilled_inference(config: ConfigDict) -> InferenceConfig:
    """Whole images at the distillation's scale, normalised by ImageNet's mean and deviation."""
    return InferenceConfig(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        scale_px=tuple(config.student.scale_px),
        embedding_labels=row_labels(config),
    )


def expected(config: ConfigDict, stage: str) -> dict[str, str]:
    """The entries that the record of a trained file must have."""
    method = METHODS[config.model == "reclip++"]
    return {"stage": stage, "method": method, "revision": config.revision}


def rectified(config: ConfigDict, workdir: Path) -> Network:
    """The rectified CLIP with the class filter, as it is evaluated."""
    model, _ = load_rectified(config, workdir)
    mean, std = tuple(config.clip.mean), tuple(config.clip.std)
    threshold = config.inference.class_threshold
    return Network(
        task.build(model, mean=mean, std=std, threshold=threshold),
        rectified_inference(config),
        lambda model, images, sizes: l2_normalize(model.dense(images, sizes).features),
    )


def distilled(config: ConfigDict, workdir: Path) -> Network:
    """The trained student, as it is evaluated; its features are comparable with texts."""
    _check_distillation(config)
    # The student's file holds what was trained of its teacher as well.
    teacher, _ = build_rectifier(config, workdir)
    trained_task = distillation(config, frozen_reference(teacher))
    model: Any = trained_task.model
    loaded = load_trained(
        distilled_path(config, workdir),
        RECLIP,
        classes=row_words(config),
        expected=expected(config, "distillation"),
        visual=model.teacher.visual,
    )
    install(model, loaded.arrays, complete=("student.", "teacher.head.", "teacher.reference."))
    return Network(
        trained_task,
        distilled_inference(config),
        lambda model, images, sizes: model.student(images, sizes, train=False),
    )


def distilled_path(config: ConfigDict, workdir: Path) -> Path:
    """The student to evaluate: the config's file, or what the stage `distill` wrote."""
    student = config.student
    return place(student.trained_weights or workdir / f"distilled_{student.checkpoint}.safetensors")


def network(config: ConfigDict, workdir: Path) -> Network:
    """The student where one is trained, otherwise the rectified CLIP."""
    finished = distilled_path(config, workdir).exists()
    return distilled(config, workdir) if finished else rectified(config, workdir)
