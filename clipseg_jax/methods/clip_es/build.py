"""The trained student of CLIP-ES, as its config describes it."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.clip_es import student_task
from clipseg_jax.models.deeplab_v2 import STATISTICS
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.network import Network

STUDENT = "student.safetensors"


def inference(config: ConfigDict) -> InferenceConfig:
    """Whole images as training reads them, unless the config asks for scales and mirror images."""
    mean, std = STATISTICS[config.student.get("variant", "caffe")]
    longest = config.dataset.get("longest_px")
    return InferenceConfig(
        mean=mean,
        std=std,
        scale_px=(longest, longest) if longest else None,
        enlarge=False,
        temperature=1.0,  # logits of a trained network
        ratios=tuple(config.student.ratios),
        flip=config.student.flip,
    )


def network(config: ConfigDict, workdir: Path) -> Network:
    """The trained student, as it is evaluated; its features are those of the backbone."""
    names = find_dataset(config.dataset).class_names
    path = config.student.trained_weights or workdir / STUDENT
    trained = weights_convert.load_trained(path, weights_convert.DEEPLAB, classes=names)
    model = weights_convert.build_deeplab(trained, dtype=config.student.dtype)
    variant = model.backbone.cfg.variant
    if variant != config.student.get("variant", "caffe"):
        raise ValueError(
            f"{path} has a ResNet of variant {variant}; set --config.student.variant={variant}"
        )
    return Network(
        student_task.build(model),
        inference(config),
        lambda model, images, sizes: model.backbone(images, sizes, train=False)[-1],
    )
