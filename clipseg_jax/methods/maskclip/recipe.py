"""MaskCLIP's recipe: class embeddings, then evaluation. Nothing is trained.

    python -m clipseg_jax.main --config=configs/voc_maskclip.py --config.clip.weights=ViT-B/16

Hardware: any device; nothing is trained. Hours: not measured. Paper, VOC: mIoU 49.5 (ViT-B/16).
Ours: 57.7 on the demo world; VOC not run.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.methods.maskclip import task
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.models.clip.read_outs import VALUE, ReadOut
from clipseg_jax.stages.clip import load_clip, read_embeddings, with_choices
from clipseg_jax.stages.training_free import stages_of
from clipseg_jax.task import Task


def build(config: ConfigDict, workdir: Path, read_out: ReadOut = VALUE) -> Task:
    """The config's CLIP with the class embeddings of the stage `text`."""
    rows = read_embeddings(config, workdir)
    clip = with_choices(load_clip(config).model, config)
    return task.build(clip.visual, rows, MaskCLIPConfig(**config.maskclip.to_dict()), read_out)


STAGES = stages_of(build)
