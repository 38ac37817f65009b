"""What a worker process of `row_processes` runs: makes rows until its parent is gone.

It imports neither JAX nor TensorFlow, nor the file of the program that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import pickle
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cv2

from input_pipeline.batches.row_memory import RowMemory

# glibc's parameters of `mallopt`, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 28


def main(connection_file: int, memory_file: int) -> None:
    """Serves the parent at the other end of the connection; its first message says what rows."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the parent to handle
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    _keep_freed_memory()
    logged: list[tuple[str, int, str]] = []
    logging.basicConfig(handlers=[_Kept(logged)], force=True)
    logging.captureWarnings(True)
    with contextlib.suppress(EOFError, ConnectionError), Connection(connection_file) as parent:
        try:
            make_row, specs, rows, slots = parent.recv()
        except EOFError:
            raise
        except Exception as error:  # what the program's own file defines is not found here
            parent.send(error)
            return
        memory = RowMemory(specs, rows, slots, memory_file)
        batches = [memory.arrays(slot) for slot in range(slots)]
        while True:
            slot, first, rows_of_mine = parent.recv()
            for row in rows_of_mine:
                arrays, note = make_row(first + row)
                for batch, array in zip(batches[slot], arrays, strict=True):
                    batch[row] = array
                parent.send((first + row, _sendable(note), logged))
                logged.clear()


class _Kept(logging.Handler):
    """Keeps what is logged, for the parent to log."""

    def __init__(self, kept: list[tuple[str, int, str]]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.name, record.levelno, record.getMessage()))


def _sendable(note: Any) -> Any:
    """The note; of a mistake of ours with where it was made, which pickling loses."""
    if not isinstance(note, Exception):
        return note
    if not isinstance(note, (ValueError, OSError)):
        note.add_note("In a worker process:\n" + "".join(traceback.format_exception(note)))
    try:
        pickle.loads(pickle.dumps(note))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(note)))
    return note


def _keep_freed_memory() -> None:
    """The arrays of a row get the memory of the last row: new pages are a fifth of its time."""
    with contextlib.suppress(AttributeError, OSError):  # without glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
