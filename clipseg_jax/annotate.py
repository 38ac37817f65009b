"""The offline annotation pass: runs a jitted step on batches and hands out each image's result.

Writes CAMs, CRF masks and image tags. A method provides the step and a callback that stores one
image's part of the result; no results are held across batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from clipseg_jax.core.mesh import local_rows, shard_batch
from clipseg_jax.core.progress import progress_bar
from clipseg_jax.task import HostBatch

# (the batch's arrays sharded by rows, batch) -> arrays with one row per image
AnnotateStep = Callable[[dict[str, jax.Array], HostBatch], dict[str, jax.Array]]
# (index of the example, its row of each result, row in the batch, batch)
OnImage = Callable[[int, dict[str, np.ndarray], int, HostBatch], None]


def annotate(
    batches: Iterable[HostBatch],
    step: AnnotateStep,
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
      step: jitted; takes the sharded arrays, and the host batch for its static values.
      on_image: stores the result of one image; called for valid rows only.
      mesh: devices over which batches are sharded.
      total: images of all processes, for the progress bar.
      desc: label of the progress bar.

    Returns:
      The number of images for which this process called `on_image`.
    """
    count = 0
    pending: tuple[dict[str, jax.Array], HostBatch] | None = None

    def finish(results: dict[str, jax.Array], batch: HostBatch) -> int:
        local = {name: local_rows(value) for name, value in results.items()}
        rows = np.flatnonzero(batch["valid"])
        for row in rows:
            image_results = {name: value[row] for name, value in local.items()}
            on_image(int(batch["index"][row]), image_results, int(row), batch)
        return len(rows)

    with progress_bar(total=total, unit="image", desc=desc) as bar:
        for batch in batches:
            arrays = {name: x for name, x in batch.items() if isinstance(x, np.ndarray)}
            results = step(shard_batch(mesh, arrays), batch)
            # The devices compute this batch while the previous one's images are written.
            if pending:
                count += finish(*pending)
                bar.update(jax.process_count() * int(np.sum(pending[1]["valid"])))
            pending = (results, batch)
        if pending:
            count += finish(*pending)
            bar.update(jax.process_count() * int(np.sum(pending[1]["valid"])))
    return count
