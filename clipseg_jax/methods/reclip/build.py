"""The models of ReCLIP's recipe, as its config and its earlier stages make them."""

from __future__ import annotations

from pathlib import Path

from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from clipseg_jax.core.modules import initialised
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.reclip import distill_task as reclip_distill
from clipseg_jax.methods.reclip import task as reclip
from clipseg_jax.methods.reclip.model import ReCLIP, ReCLIPConfig, frozen_reference, reference_ids
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from clipseg_jax.stages.clip import load_clip, read_embeddings, row_labels, row_words
from clipseg_jax.task import Task
from weights_convert import RECLIP, install, load_trained
from weights_convert.trained.reclip.format import METHODS


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
    install(model, loaded.arrays, complete=("reference.prompt", "head."))
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
    features = teacher.visual.cfg.embed_dim
    student = initialised(lambda rngs: DeepLab(cfg, features, rngs=rngs), config.train.seed)
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
        embedding_labels=row_labels(config),
    )


def distilled_inference(config: ConfigDict) -> InferenceConfig:
    """Whole images at the distillation's scale; the student sees ImageNet's grey levels."""
    return InferenceConfig(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        scale_px=tuple(config.distill.scale_px),
        embedding_labels=row_labels(config),
    )


def expected(config: ConfigDict, stage: str) -> dict[str, str]:
    """The entries that the record of a trained file must have."""
    method = METHODS[config.model == "reclip++"]
    return {"stage": stage, "method": method, "revision": config.revision}
