"""The frozen network of MaskCLIP, as a config describes it."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.methods.maskclip import task
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.clip.read_outs import VALUE, ReadOut
from clipseg_jax.stages.clip import load_clip, read_embeddings, with_choices
from clipseg_jax.stages.inference import inference_config
from clipseg_jax.stages.network import Network
from clipseg_jax.task import Task


def build(config: ConfigDict, workdir: Path, read_out: ReadOut = VALUE) -> Task:
    """The config's CLIP with the class embeddings of the stage `text`."""
    rows = read_embeddings(config, workdir)
    clip = with_choices(load_clip(config).model, config)
    return task.build(clip.visual, rows, MaskCLIPConfig(**config.maskclip.to_dict()), read_out)


def network(config: ConfigDict, workdir: Path) -> Network:
    """The frozen CLIP with its class embeddings, as it is evaluated."""
    return Network(
        build(config, workdir),
        inference_config(config),
        lambda model, images, sizes: l2_normalize(model.features(images, sizes)),
    )
