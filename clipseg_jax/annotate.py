"""The one offline pass: batches in, something made of each image out; goes on where it was.

CAMs, CRF masks and image tags are made by it. A method brings a jitted step and says what to do
with each image's part of the result; nothing is kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from clipseg_jax.core.mesh import own_rows, shard_batch

Batch = Mapping[str, Any]
# (jitted, with the batch's arrays sharded by rows) -> arrays with a row for each image
Step = Callable[[dict[str, jax.Array], Batch], dict[str, jax.Array]]
# (number of the example, its rows of the result, row of the batch, batch)
OnImage = Callable[[int, dict[str, np.ndarray], int, Batch], None]


def annotate(
    batches: Iterable[Batch],
    step: Step,
    on_image: OnImage,
    *,
    mesh: Mesh,
    total: int | None = None,
    desc: str = "",
) -> int:
    """Runs `step` on every batch and `on_image` on each of this process's images.

    Args:
      batches: as `input_pipeline.batches.evaluation` yields them: this process's rows of each
        global batch, every process the same number.
      step: takes the batch's arrays on the devices, and the batch itself for what is static.
      total: images of all processes, for the progress bar.

    Returns:
      How many images this process has handed out.
    """
    count = 0
    pending: tuple[dict[str, jax.Array], Batch] | None = None
    quiet = None if jax.process_index() == 0 else True

    def finish(made: dict[str, jax.Array], batch: Batch) -> int:
        own = {name: own_rows(value) for name, value in made.items()}
        rows = np.flatnonzero(batch["valid"])
        for row in rows:
            on_image(int(batch["index"][row]), {n: v[row] for n, v in own.items()}, int(row), batch)
        return len(rows)

    with tqdm(total=total, unit="image", desc=desc, disable=quiet) as bar:
        for batch in batches:
            arrays = {name: x for name, x in batch.items() if isinstance(x, np.ndarray)}
            made = step(shard_batch(mesh, arrays), batch)
            # The device works on this batch while the last one's images are written.
            if pending:
                count += finish(*pending)
                bar.update(jax.process_count() * int(np.sum(pending[1]["valid"])))
            pending = (made, batch)
        if pending:
            count += finish(*pending)
            bar.update(jax.process_count() * int(np.sum(pending[1]["valid"])))
    return count
