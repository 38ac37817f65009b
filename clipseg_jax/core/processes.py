"""Several processes, one run: joining them, agreeing, and noticing that one is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_HEARTBEAT_S = 30  # a process that is silent for so long is taken for dead


def join(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Joins the run's processes; before any other use of JAX's devices.

    Without arguments, JAX reads them from Slurm, a TPU pod, Kubernetes or Open MPI.

    Raises:
      ValueError: some of the three but not all.
    """
    given = (coordinator, count, index)
    if any(x is None for x in given) and any(x is not None for x in given):
        raise ValueError(
            "--coordinator, --processes and --process go together (or none of them, with "
            f"--distributed); given were {given}"
        )
    jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=_HEARTBEAT_S)


def agree(value: bool) -> bool:
    """Process 0's `value`, in all processes: what one of them read from disk, all act upon."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def add_up(counts: np.ndarray) -> np.ndarray:
    """The sum (int64) of every process's array of whole numbers."""
    if jax.process_count() == 1:
        return counts
    # As bytes: JAX would make 32 bits of them.
    own = np.ascontiguousarray(counts, np.int64).view(np.uint8)
    parts = np.ascontiguousarray(multihost_utils.process_allgather(own)).view(np.int64)
    return np.asarray(np.sum(parts, axis=0))


def wait(name: str) -> None:
    """Returns once every process has come here; `name` tells apart the places."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def leave_if_a_peer_is_gone(run: Callable[[], Any]) -> Any:
    """Runs `run`. In a run of several processes an error of the network ends this one at once.

    The devices of a dead process can't be replaced, and Python's exit would wait for it.
    """
    try:
        return run()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:300]
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} lost another one "
            f"({reason}); start the same command again, with as many processes as are left: it "
            "goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
