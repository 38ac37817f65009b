"""Rows that worker processes make ahead of their consumer, stacked into batches in a fixed order.

Threads of one process share Python's lock, which bounds what they make, on however many cores. The
workers are new interpreters, not forks of one that runs JAX. They write rows into memory that the
consumer reads: what is sent are numbers. Row n is made by worker n modulo their number.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import numpy as np

from input_pipeline.batches.row_memory import ArraySpec, RowMemory
from input_pipeline.batches.tf_threads import close_at_exit

Note = TypeVar("Note")

_BATCHES_AHEAD = 2
_ROWS_AHEAD = 4  # of each worker, at least
_BATCHES_LENT = 2  # a training holds the last batch and the next
_CODE = (
    "import sys; sys.path[:] = {path!r}; from input_pipeline.batches.row_worker import main; "
    "main({connection}, {memory})"
)


def rows_by_processes(
    make_row: Callable[[int], tuple[tuple, Note]],
    array_specs: Sequence[ArraySpec],
    rows: int,
    *,
    start: int = 0,
    processes: int,
) -> Generator[tuple[tuple[np.ndarray, ...], list[Note]], None, None]:
    """Endless batches of `rows` rows each: the arrays of `make_row(start)`, ... in order.

    Args:
      make_row: number of a row -> its arrays, and a note for the consumer. It must be picklable,
        and must not raise: put an error into the note.
      array_specs: dtypes and shapes of the arrays.
      rows: rows of a batch.
      start: number of the first row.
      processes: how many workers make rows.

    Yields:
      The stacked arrays, and the notes of the rows.

    Raises:
      ValueError: `make_row` cannot be sent to a process.
      ChildProcessError: a worker was killed.
    """
    stream = _stacked(make_row, array_specs, rows, start, processes)
    close_at_exit(stream)
    return stream


def _stacked(
    make_row: Callable[[int], tuple[tuple, Note]],
    array_specs: Sequence[ArraySpec],
    rows: int,
    start: int,
    processes: int,
) -> Generator[tuple[tuple[np.ndarray, ...], list[Note]], None, None]:
    ahead = max(_BATCHES_AHEAD, -(-_ROWS_AHEAD * processes // rows))
    slots = ahead + _BATCHES_LENT
    task = _pickled((make_row, array_specs, rows, slots))
    memory = RowMemory(array_specs, rows, slots)
    workers: list[_Worker] = []
    free, filling = deque(range(slots)), deque[int]()
    given = start  # the first row that no worker was told to make
    logged: set[tuple[str, int, str]] = set()
    try:
        for _ in range(processes):
            workers.append(_Worker(memory.file, task))
        while True:
            while free and len(filling) < ahead:
                filling.append(free.popleft())
                for n, worker in enumerate(workers):
                    mine = range((n - given) % processes, rows, processes)
                    worker.send((filling[-1], given, mine))
                given += rows
            notes = []
            for number in range(start, start + rows):
                made, note, messages = workers[number % processes].receive()
                assert made == number
                notes.append(note)
                _log(messages, logged)
            slot, start = filling.popleft(), start + rows
            if len(free) + len(filling) >= ahead:
                yield memory.arrays(slot, functools.partial(free.append, slot)), notes
            else:  # a consumer that keeps batches gets copies
                arrays = tuple(array.copy() for array in memory.arrays(slot))
                free.append(slot)
                yield arrays, notes
    finally:
        memory.close_file()
        for worker in workers:
            worker.end()


class _Worker:
    """A process that makes rows, one after the other, as it is told."""

    def __init__(self, memory_file: int, task: bytes) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            code = _CODE.format(path=sys.path, connection=theirs.fileno(), memory=memory_file)
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory_file),
                start_new_session=True,  # Ctrl-C is for the parent
            )
        self._connection = Connection(ours.detach())
        with contextlib.suppress(ConnectionError):
            self._connection.send_bytes(task)

    def send(self, message: Any) -> None:
        with contextlib.suppress(ConnectionError):  # `receive` says what happened
            self._connection.send(message)

    def receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            # As of memory: another run may find it mended.
            raise self._lost() from OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if isinstance(answer, Exception):
            raise ValueError(
                f"a worker process cannot make rows ({type(answer).__name__}: {answer}); define "
                f"views in a module that can be imported, or make rows in threads (0 processes)"
            ) from answer
        return answer

    def end(self) -> None:
        self._connection.close()
        self._process.kill()  # it has nothing to save
        self._process.wait()

    def _lost(self) -> ChildProcessError:
        code = self._process.wait()
        how = f"ended with status {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return ChildProcessError(
            f"a worker process that makes training rows {how}, perhaps for lack of memory; run the "
            f"same command again to resume, with fewer of them (--config.run.loader_processes=N, "
            f"0: threads)"
        )


def _pickled(task: tuple) -> bytes:
    try:
        return bytes(ForkingPickler.dumps(task))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"rows cannot be made in worker processes ({error}); define views as functions of a "
            f"module, or make rows in threads (0 processes)"
        ) from error


def _log(messages: Sequence[tuple[str, int, str]], logged: set[tuple[str, int, str]]) -> None:
    """Logs what workers logged; what several say once."""
    for message in messages:
        if message not in logged:
            logged.add(message)
            logging.getLogger(message[0]).log(message[1], "%s", message[2])
