"""Processes long lists of files or other things in chunks, with one process per core."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from tqdm import tqdm

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
# A function like `map`, possibly in several processes: (function, chunks) -> results in order.
Run = Callable[[Callable[[Chunk], Result], Sequence[Chunk]], Iterable[Result]]

CHUNK = 64  # files per chunk
_MAX_PROCESSES = 32  # with more the disk is the bottleneck


def in_processes(step: str, unit: str = "file") -> Run:
    """A function like `map` with one process per core and a progress bar called `step`.

    `unit`: what a chunk has several of.
    """

    def run(function: Callable, chunks: Sequence) -> Iterator:
        with tqdm(total=sum(map(len, chunks)), unit=unit, desc=step, disable=None) as bar:
            for chunk, result in zip(chunks, _results(function, chunks), strict=True):
                bar.update(len(chunk))
                yield result

    return run


def _results(function: Callable, chunks: Sequence) -> Iterator:
    processes = min(os.cpu_count() or 1, len(chunks), _MAX_PROCESSES)
    if processes <= 1:
        yield from map(function, chunks)
        return
    # A forked process would inherit locks that other threads hold.
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, spawn, _exit_with_parent) as pool:
            yield from pool.map(function, chunks)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process was killed, perhaps for lack of memory; run the command again"
        ) from error


def _exit_with_parent() -> None:
    """Ignores Ctrl-C, which the parent handles, and exits if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
