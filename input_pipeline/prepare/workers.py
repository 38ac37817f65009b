"""Long lists of files worked on in chunks, in one process a core."""

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
Made = TypeVar("Made")
# How chunks are worked on: `map`, or the same thing in several processes.
Run = Callable[[Callable[[Chunk], Made], Sequence[Chunk]], Iterable[Made]]

CHUNK = 64  # files that a process takes at a time
_MOST_PROCESSES = 32  # beyond it is the disk that is slow


def in_processes(step: str) -> Run:
    """Works on chunks as `map`, in one process a core, with a progress bar called `step`."""

    def run(function: Callable, chunks: Sequence) -> Iterator:
        with tqdm(total=sum(map(len, chunks)), unit="file", desc=step, disable=None) as bar:
            for chunk, made in zip(chunks, _results(function, chunks), strict=True):
                bar.update(len(chunk))
                yield made

    return run


def _results(function: Callable, chunks: Sequence) -> Iterator:
    processes = min(os.cpu_count() or 1, len(chunks), _MOST_PROCESSES)
    if processes <= 1:
        yield from map(function, chunks)
        return
    # Forking would copy the threads' locks.
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, spawn, _follow_the_parent) as pool:
            yield from pool.map(function, chunks)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process was killed, perhaps for lack of memory; run the command again"
        ) from error


def _follow_the_parent() -> None:
    """Ctrl-C is for the parent, which waits for our chunk; if it is killed we end too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
