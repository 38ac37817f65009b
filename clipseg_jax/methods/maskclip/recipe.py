"""MaskCLIP's recipe: class embeddings, then evaluation. Nothing is trained.

    python -m clipseg_jax.main --config=configs/voc_maskclip.py --config.clip.weights=ViT-B-16.pt

Hardware: any device; nothing is trained. Hours: not measured. Paper, VOC: mIoU 49.5 (ViT-B/16).
Ours: 57.7 on the demo world; VOC not run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.inference import InferenceConfig
from clipseg_jax.methods.maskclip import task
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.models.clip import CLIP, ViTConfig
from clipseg_jax.stages.clip import load_clip, read_embeddings, row_labels, text
from clipseg_jax.stages.data import check_splits
from clipseg_jax.stages.evaluation import Evaluation
from clipseg_jax.stages.robustness import measure
from clipseg_jax.task import Task


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset is there; paints the demo world."""
    del workdir
    return check_splits(config.dataset, config.dataset.split)


def with_choices(clip: CLIP, config: ConfigDict) -> CLIP:
    """`clip` with the image tower's choices of the config; the text tower is unchanged."""
    if not isinstance(clip.cfg.vision, ViTConfig):
        return clip
    names = ("activation", "norm_eps", "position_keep_count")
    choices = {name: config.clip[name] for name in names}
    vision = dataclasses.replace(clip.cfg.vision, **choices)
    return weights_convert.with_config(clip, dataclasses.replace(clip.cfg, vision=vision))


def build(config: ConfigDict, workdir: Path) -> Task:
    """The config's CLIP with the class embeddings of the stage `text`."""
    rows = read_embeddings(config, workdir)
    clip = with_choices(load_clip(config).model, config)
    return task.build(clip.visual, rows, MaskCLIPConfig(**config.maskclip.to_dict()))


def inference(config: ConfigDict) -> InferenceConfig:
    """Preprocessing, windows and labels, as the config describes them."""
    return InferenceConfig(
        mean=tuple(config.clip.mean),
        std=tuple(config.clip.std),
        embedding_labels=row_labels(config),
        **config.inference.to_dict(),
    )


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """mIoU over the split, into metrics.json; overlays into pictures/."""
    return Evaluation(config, inference(config)).write(build(config, workdir), workdir)


def robustness(config: ConfigDict, workdir: Path) -> dict:
    """mIoU under each corruption, into robustness.json."""
    return measure(config, inference(config), build(config, workdir), workdir)


STAGES = {"data": data, "text": text, "evaluate": evaluate, "robustness": robustness}
