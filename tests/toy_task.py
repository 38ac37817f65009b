"""A task small enough to train in milliseconds: what the tests of the loop share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.models.batch_norm import BatchNorm
from clipseg_jax.task import Task

CLASSES = 3


class Toy(nnx.Module):
    def __init__(self, rngs):
        self.tower = nnx.Linear(4, 8, rngs=rngs)  # frozen
        self.norm = BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x, *, train):
        return self.head(jax.nn.relu(self.norm(self.tower(x), train=train)))


def loss(model, batch, key, step):
    del step
    noise = 0.1 * jax.random.normal(key, (CLASSES,))
    logits = model(batch["x"], train=True) + noise
    log = jax.nn.log_softmax(logits)
    value = -jnp.mean(jnp.take_along_axis(log, batch["y"][:, None], axis=1))
    return value, {"top": jnp.max(logits)}


def build(seed=0):
    return Task(
        model=Toy(nnx.Rngs(seed)),
        predict=lambda model, x, sizes: model(x, train=False),
        grid_size=lambda sizes: sizes,
        trainable=lambda path: path.startswith(("norm.", "head.")),
        loss=loss,
    )


def batches(start, *, size=8, process=0, processes=1, poison=None):
    """Rows of each step's batch; step `poison` holds a number that is none."""
    step = start
    while True:
        rng = np.random.default_rng(step)
        x = rng.standard_normal((size, 4)).astype(np.float32)
        if step == poison:
            x[3] = np.nan
        index = np.arange(size, dtype=np.int32) + step * size
        rows = {"x": x, "y": (x.sum(1) > 0).astype(np.int32), "index": index}
        rows_of_process = slice(process * size // processes, (process + 1) * size // processes)
        yield {name: value[rows_of_process] for name, value in rows.items()}
        step += 1
