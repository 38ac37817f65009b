"""Runs of several processes: joining, devices, collectives on the host, and how all end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from input_pipeline import commands

PEER_LOST = 75  # exit code, EX_TEMPFAIL: the same command resumes

_HEARTBEAT_S = 30  # seconds without a heartbeat after which a process counts as lost
_ENDED = "clipseg_jax/ended"  # key of the coordinator's store: who ended first, with which code
_POLL_S = 1.0  # seconds between looks at that key
_DELIVERY_S = 3.0  # for the others to find it
_over = threading.Event()  # this process is ending, by itself
_RESUME = "start the same command again: it resumes from the last checkpoint"


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
      ValueError: some of the arguments are given, but not all; no cluster is found; the node's
        processes cannot share its GPUs.
    """
    arguments = (coordinator, count, index)
    if any(x is None for x in arguments) and any(x is not None for x in arguments):
        raise ValueError(
            "pass all of --coordinator, --processes and --process, or none of them and "
            f"--distributed; got {arguments}"
        )
    if count is not None and not 0 <= (index or 0) < count:
        raise ValueError(f"--process {index} is not in 0..{count - 1} (--processes {count})")
    # Its handler would swallow SIGTERM outside training; core/interrupt.py does without it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=local_device_ids(os.environ),
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )
    except ValueError as error:
        if coordinator is None and "should be defined" in str(error):
            raise ValueError(
                "--distributed finds no Slurm, TPU pod, Kubernetes or Open MPI; pass --coordinator "
                "HOST:PORT --processes N --process I"
            ) from None
        raise
    if _client() is not None:
        _report_aborts()
        _watch.start()


def local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """Which of its node's GPUs this process uses: [] all that it sees; None: JAX's choice.

    Left to itself, JAX takes one GPU a process under Slurm and Open MPI. Here the node's processes
    share its GPUs evenly.

    Raises:
      ValueError: they cannot.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    count, rank = _on_this_node(environment)
    visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("SLURM_STEP_GPUS")
    gpus = len(visible.split(",")) if visible else int(environment.get("SLURM_GPUS_ON_NODE", 0))
    # One visible GPU is this process's own (`--gpus-per-task`, launch/local.sh).
    if count == 1 or (visible and gpus == 1):
        return []
    if not gpus:  # unknown, or none
        return None
    if gpus % count:
        raise ValueError(
            f"{count} processes cannot share {gpus} GPUs evenly on this node; start 1 process a "
            f"node, or one a GPU"
        )
    share = gpus // count
    return [*range(rank * share, (rank + 1) * share)]


def _on_this_node(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many of the run's processes this node has, and the rank of this one among them."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        local = environment["OMPI_COMM_WORLD_LOCAL_SIZE"], environment["OMPI_COMM_WORLD_LOCAL_RANK"]
        return int(local[0]), int(local[1])
    if "SLURM_STEP_TASKS_PER_NODE" not in environment:
        return 1, 0
    counts: list[int] = []  # of each node: "2(x3),1" is 2, 2, 2, 1
    for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert match, environment["SLURM_STEP_TASKS_PER_NODE"]
        counts += [int(match[1])] * int(match[2] or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return counts[node], int(environment.get("SLURM_LOCALID", 0))


def describe() -> str:
    """Such as "2 processes, 16 devices: NVIDIA H100".

    Raises:
      ValueError: JAX finds no device, or not the same number in each process.
    """
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise ValueError(f"no devices: {' '.join(str(error).split())}") from None
    each = Counter(device.process_index for device in devices)
    counts = [each[index] for index in range(jax.process_count())]
    if len({*counts}) > 1:
        raise ValueError(
            f"processes 0 to {len(counts) - 1} have {counts} devices; give all as many"
        )
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    return f"{_some(len(counts), 'process', 'es')}, {_some(len(devices), 'device')}: {kinds}"


def _some(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"


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


def end_together(run: Callable[[], int]) -> int:
    """Returns `run()`, an exit code; with several processes one that is not 0 ends all of them.

    A regular exit of Python would wait for the others, which wait in a collective.
    """
    try:
        code = run()
    except Exception:
        if _client() is None:
            raise
        traceback.print_exc()
        code = 1
    if code and _client() is not None:
        leave(code)
    _over.set()
    if _watch.is_alive():
        _watch.join()  # its call must not outlast the connection
    return code


def exit_if_peer_lost(run: Callable[[], Any]) -> Any:
    """Returns `run()`; if a collective fails, a peer is lost and this process ends with 75."""
    try:
        return run()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        # XLA's errors start with their kind, whichever class they become. No memory is our own.
        kind = re.match(r"([A-Z_]{5,}): ", reason)
        if _client() is None or not kind or kind[1] == "RESOURCE_EXHAUSTED":
            raise
        time.sleep(_DELIVERY_S)  # if the peer said why it ended, `_end_with_peers` says so first
        leave(PEER_LOST, f"error: {_name()} lost a peer ({reason}); {_RESUME}")


def leaving() -> bool:
    """Whether this process is about to end."""
    return _over.is_set()


def leave(code: int, message: str = "") -> NoReturn:
    """Ends this process at once, and with it all others, with the same exit code."""
    if message:
        commands.say(message, error=True)
    _over.set()
    if (client := _client()) is not None:
        # An error: another process was first, or the coordinator is gone.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(_ENDED, json.dumps([distributed.global_state.process_id, code]))
    _exit(code)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # full, or closed when the process began
            stream.flush()
    if _client() is not None and distributed.global_state.process_id == 0:
        time.sleep(_DELIVERY_S)  # the store ends with this process
    os._exit(code)


def _end_with_peers() -> None:
    """Ends this process, from a thread, once another has ended before its time."""
    while not _over.wait(_POLL_S):
        try:
            index, code = json.loads(_client().key_value_try_get(_ENDED))
        except jax.errors.JaxRuntimeError:  # nobody has
            continue
        if not _over.is_set():
            print(
                f"{_name()} stops: process {index} ended with code {code}; its output says why",
                file=sys.stderr,
            )
            _exit(code)


_watch = threading.Thread(target=_end_with_peers, daemon=True)


def _report_aborts() -> None:
    """Makes this process end with a message where JAX aborts it because a peer is lost.

    JAX's client aborts from a thread of its own once heartbeats fail, and Python cannot replace
    that callback (its argument, an absl::Status, has no Python type): so the signal is handled.
    """
    message = (
        f"error: {_name()} was aborted by JAX for the reason above, which as a rule is a lost "
        f"peer; {_RESUME}\n"
    )

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(_: int) -> None:
        os.write(2, message.encode())
        os._exit(PEER_LOST)

    _kept.append(end)
    ctypes.CDLL(None).signal(signal.SIGABRT, end)


_kept: list[Any] = []  # C holds no references


def _name() -> str:
    state = distributed.global_state  # jax.process_index() may wait for devices
    return f"process {state.process_id} of {state.num_processes}"


def _client() -> Any:
    """The connection to the coordinator; None without several processes."""
    return distributed.global_state.client
