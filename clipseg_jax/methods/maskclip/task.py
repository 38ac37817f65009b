"""MaskCLIP as a task: nothing is trained."""

from __future__ import annotations

from jax.typing import ArrayLike

from clipseg_jax.methods.maskclip.model import MaskCLIP, MaskCLIPConfig
from clipseg_jax.models.clip import ImageTower
from clipseg_jax.models.clip.read_outs import VALUE, ReadOut
from clipseg_jax.task import Task


def build(
    visual: ImageTower,
    text_embeddings: ArrayLike,
    cfg: MaskCLIPConfig | None = None,
    read_out: ReadOut = VALUE,
) -> Task:
    """A frozen CLIP image tower and text rows (c, e) as a segmentation task.

    `read_out`: of a ViT; another one than MaskCLIP's where MaskCLIP teaches, or is rectified.

    Raises:
      ValueError: text rows of another CLIP.
    """
    model = MaskCLIP(visual, text_embeddings, cfg, read_out)
    return Task(
        model=model,
        predict=lambda model, images, sizes: model(images, sizes),
        grid_size=model.visual.grid_sizes,
    )
