"""The contract between the loops and the methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
from jax import Array

Metrics = dict[str, Array]


class Task(NamedTuple):
    """What the loops need of a method; a method writes these, never a loop."""

    model: nnx.Module
    # (model, normalised images (b, h, w, 3), real sizes (b, 2)) -> logits (b, gh, gw, c), zero
    # outside each image's own grid
    predict: Callable[[Any, Array, Array], Array]
    # real sizes in pixels (b, 2) -> real rows and columns of the logits' grid (b, 2)
    grid_size: Callable[[Array], Array]
    # logits (..., c) of pixels -> scores, before windows and views are averaged; None: as they are
    pixel_scores: Callable[[Array], Array] | None = None
    # dotted path of a parameter -> whether the optimiser owns it; the rest stays frozen, unsaved
    trainable: Callable[[str], bool] | None = None
    # (model, batch, key, step) -> loss and scalars to report; may move the model's statistics
    loss: Callable[[Any, dict[str, Array], Array, Array], tuple[Array, Metrics]] | None = None
