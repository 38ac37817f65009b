"""The trained student of CLIP-ES, as its config describes it."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.clip_es import student_task
from clipseg_jax.models.deeplab_v2 import MEAN, STD
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.network import Network

STUDENT = "student.safetensors"


def inference(config: ConfigDict) -> InferenceConfig:
    """Whole images at their own size, unless the config asks for scales and mirror images."""
    return InferenceConfig(
        mean=MEAN,
        std=STD,
        scale_px=None,
        temperature=1.0,  # logits of a trained network
        ratios=tuple(config.student.ratios),
        flip=config.student.flip,
    )


def network(config: ConfigDict, workdir: Path) -> Network:
    """The trained student, as it is evaluated; its features are those of the backbone."""
    names = find_dataset(config.dataset).class_names
    path = config.student.trained_weights or workdir / STUDENT
    trained = weights_convert.load_trained(path, weights_convert.DEEPLAB, classes=names)
    return Network(
        student_task.build(weights_convert.build_deeplab(trained, dtype=config.student.dtype)),
        inference(config),
        lambda model, images, sizes: model.backbone(images, sizes, train=False)[-1],
    )
