"""Read-outs as tasks: nothing is trained."""

from __future__ import annotations

from jax.typing import ArrayLike

from clipseg_jax.methods.readouts.feedback import FeedbackConfig
from clipseg_jax.methods.readouts.model import ReadOutModel
from clipseg_jax.methods.readouts.proxy import ProxyCLIP, ProxyConfig
from clipseg_jax.models.clip import ImageTower
from clipseg_jax.models.clip.read_outs import ReadOut
from clipseg_jax.models.dino import DINO
from clipseg_jax.task import Task


def build(
    visual: ImageTower,
    text_embeddings: ArrayLike,
    read_out: ReadOut,
    *,
    feedback: FeedbackConfig | None = None,
) -> Task:
    """A frozen CLIP image tower and text embeddings (c, e) as a segmentation task.

    Raises:
      ValueError: a tower that is no ViT, or text embeddings of another CLIP.
    """
    model = ReadOutModel(visual, text_embeddings, read_out, feedback)
    return Task(
        model=model,
        predict=lambda model, images, sizes: model(images, sizes),
        grid_size=model.visual.grid_sizes,
    )


def build_proxy(
    visual: ImageTower,
    dino: DINO,
    text_embeddings: ArrayLike,
    cfg: ProxyConfig | None = None,
) -> Task:
    """ProxyCLIP: a frozen CLIP image tower, a frozen DINO and text embeddings (c, e) as a task.

    Raises:
      ValueError: an image tower that is no ViT, or text embeddings of another CLIP.
    """
    model = ProxyCLIP(visual, dino, text_embeddings, cfg)
    return Task(
        model=model,
        predict=lambda model, images, sizes: model(images, sizes),
        grid_size=model.grid_sizes,
    )
