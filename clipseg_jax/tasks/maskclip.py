"""MaskCLIP as a task: nothing is trained."""

from __future__ import annotations

from jax.typing import ArrayLike

from clipseg_jax.models.clip import CLIP
from clipseg_jax.models.maskclip import MaskCLIP, MaskCLIPConfig
from clipseg_jax.tasks.base import Task


def build(clip: CLIP, text_embeddings: ArrayLike, cfg: MaskCLIPConfig) -> Task:
    """A frozen CLIP image tower and text rows (c, e) as a segmentation task.

    Raises:
      ValueError: text rows of another CLIP.
    """
    model = MaskCLIP(clip.visual, text_embeddings, cfg)
    return Task(
        model=model,
        predict=lambda model, images, sizes: model(images, sizes),
        grid_size=model.visual.grid_sizes,
    )
