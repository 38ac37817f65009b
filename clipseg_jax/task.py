"""The contract between a method and the loops that train, evaluate and run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx
from jax import Array

Metrics = dict[str, Array]
# One process's rows of a batch on the host: name -> NumPy array or static value.
HostBatch = Mapping[str, Any]


class Task(NamedTuple):
    """A method as the loops see it: a model and the functions that the loops call."""

    model: nnx.Module
    # (model, normalised images (b, h, w, 3), real sizes (b, 2) in pixels) -> logits (b, gh, gw, c),
    # zero outside each image's own grid
    predict: Callable[[Any, Array, Array], Array]
    # real sizes (b, 2) in pixels -> real rows and columns (b, 2) of the logits' grid
    grid_size: Callable[[Array], Array]
    # logits (..., c) of pixels -> scores, before windows and views are averaged; None: identity
    pixel_scores: Callable[[Array], Array] | None = None
    # dotted path of a parameter -> whether it is trained; the others are frozen and not saved
    trainable: Callable[[str], bool] | None = None
    # (model, batch, key, step) -> loss, scalars to log; may update the model's batch statistics
    loss: Callable[[Any, dict[str, Array], Array, Array], tuple[Array, Metrics]] | None = None
