"""The frozen network of a read-out, as a config describes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.methods.readouts import task
from clipseg_jax.methods.readouts.feedback import FeedbackConfig
from clipseg_jax.methods.readouts.proxy import ProxyConfig
from clipseg_jax.models.clip import VisionTransformer, l2_normalize
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.ops.pamr import PAMRConfig
from clipseg_jax.stages.clip import load_clip, read_embeddings, with_choices
from clipseg_jax.stages.inference import inference_config
from clipseg_jax.stages.network import Network
from clipseg_jax.stages.sections import options
from clipseg_jax.task import Task


def build(config: ConfigDict, workdir: Path) -> Task:
    """The config's CLIP, read out as it says, with the class embeddings of the stage `text`."""
    rows = read_embeddings(config, workdir)
    visual = with_choices(load_clip(config).model, config).visual
    section = config.read_out
    if section.name == "proxyclip":
        dino = weights_convert.load_dino(config.dino.weights, dtype=config.dino.dtype)
        return task.build_proxy(visual, dino, rows, options(ProxyConfig, section.proxy))
    if isinstance(visual, VisionTransformer):
        _check_padding(config.inference.pad_to_px, visual.cfg.patch_px)
    read_out = READ_OUTS[section.name]
    if section.cross is not None:
        read_out = dataclasses.replace(read_out, cross=section.cross)
    feedback = None
    if section.feedback.enabled:
        feedback = options(
            FeedbackConfig,
            section.feedback,
            temperature=config.inference.temperature,
            pamr=PAMRConfig(**config.inference.pamr.to_dict()),
        )
    return task.build(visual, rows, read_out, feedback=feedback)


def _check_padding(pad_to_px: int, patch_px: int) -> None:
    """Checks that padded windows have whole patches; otherwise scores would be shifted.

    Raises:
      ValueError: they have not.
    """
    if pad_to_px % patch_px:
        raise ValueError(
            f"--config.inference.pad_to_px={pad_to_px} is no multiple of the patch of this CLIP, "
            f"{patch_px} px; set it to {patch_px}"
        )


def network(config: ConfigDict, workdir: Path) -> Network:
    """The frozen CLIP with its class embeddings, as it is evaluated."""
    return Network(
        build(config, workdir),
        inference_config(config),
        lambda model, images, sizes: l2_normalize(model.features(images, sizes)),
    )
