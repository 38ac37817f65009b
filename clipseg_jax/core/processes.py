"""Runs of several processes: initialisation, collectives on the host, and lost processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_HEARTBEAT_S = 30  # seconds without a heartbeat after which a process counts as lost


def initialize(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Initialises JAX's distributed runtime; must precede any use of JAX's devices.

    Args:
      coordinator: HOST:PORT of process 0. Without arguments JAX reads all three from Slurm, a TPU
        pod, Kubernetes or Open MPI.
      count: number of processes.
      index: of this process, from 0.

    Raises:
      ValueError: some of the arguments are given, but not all.
    """
    arguments = (coordinator, count, index)
    if any(x is None for x in arguments) and any(x is not None for x in arguments):
        raise ValueError(
            "pass all of --coordinator, --processes and --process, or none of them and "
            f"--distributed; got {arguments}"
        )
    jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=_HEARTBEAT_S)


def broadcast_from_main(value: bool) -> bool:
    """Process 0's `value` in all processes, so that they act alike on what it read from disk."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """The sum (int64) over processes of an array of integers, in all processes."""
    if jax.process_count() == 1:
        return counts
    # As bytes, because JAX would convert them to 32 bits.
    data = np.ascontiguousarray(counts, np.int64).view(np.uint8)
    parts = np.ascontiguousarray(multihost_utils.process_allgather(data)).view(np.int64)
    return np.asarray(np.sum(parts, axis=0))


def barrier(name: str) -> None:
    """Returns once every process has reached this call; `name` identifies it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def exit_if_peer_lost(run: Callable[[], Any]) -> Any:
    """Returns `run()`; with several processes, a JAX runtime error exits this one with code 1.

    A regular exit of Python would wait for the lost process.
    """
    try:
        return run()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:300]
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} lost a peer "
            f"({reason}); start the same command again, with the remaining processes: it "
            "resumes from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
