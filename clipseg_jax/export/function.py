"""A model with its words as one function of images of one size, which is what is exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.core.mesh import without_kernels
from clipseg_jax.inference import network_shapes, network_sizes
from clipseg_jax.segmenters.runner import Runner

Outputs = Literal["labels", "probabilities"]
OUTPUTS = ("labels", "probabilities")


class Function(NamedTuple):
    """What is exported: images of one size in, maps of that size out."""

    # (b, h, w, 3) uint8 RGB -> for "labels" (labels (b, h, w) uint8, scores (b, h, w) float32), as
    # a `Segmentation` has them; for "probabilities" one array (b, h, w, names) float32. `b` is
    # static.
    call: Callable[[Array], tuple[Array, ...]]
    size: tuple[int, int]  # h, w
    outputs: tuple[str, ...]  # names of what it returns
    names: tuple[str, ...]  # of the labels; the first is "background"
    megabytes: float  # of the weights, which `call` holds


def function_of(runner: Runner, size: tuple[int, int], outputs: Outputs) -> Function:
    """The network of a runner on images of `size` (height, width) pixels.

    All that the library does between a photo and its labels is inside: resize, windows, softmax,
    refinement and threshold.

    Raises:
      ValueError: images of this size cannot be used by the network.
    """
    at_network = network_sizes(size, runner.cfg)
    network = np.asarray(at_network, np.int32)
    shapes = network_shapes(at_network[0], runner.cfg)
    state = jax.device_get(runner.state)

    def repeated(values: np.ndarray, b: int) -> np.ndarray:
        return np.broadcast_to(values, (b, *values.shape))

    scores = _traced_anew(runner.functions.scores, (4, 5))
    segment = _traced_anew(runner.functions.segment, (4,))

    def call(images: Array) -> tuple[Array, ...]:
        with without_kernels():
            return portable(images)

    def portable(images: Array) -> tuple[Array, ...]:
        b = images.shape[0]
        sizes = repeated(np.asarray(size, np.int32), b), repeated(network, b)
        if outputs == "probabilities":
            return (scores(state, images, *sizes, shapes, None),)
        labels, best = segment(state, images, *sizes, shapes)
        if runner.threshold:
            labels = jnp.where(best < np.float32(runner.threshold), np.uint8(0), labels)
        return labels, best

    returned = ("labels", "scores") if outputs == "labels" else ("probabilities",)
    megabytes = sum(each.nbytes for each in jax.tree.leaves(state)) / 1e6
    return Function(call, size, returned, runner.names, megabytes)


def _traced_anew(jitted: Any, static: tuple[int, ...]) -> Callable:
    """A jitted function without the programs that were traced with this machine's kernels."""
    function = jitted.__wrapped__
    return jax.jit(lambda *args: function(*args), static_argnums=static)
