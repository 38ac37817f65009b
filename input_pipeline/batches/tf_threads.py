"""Rows that threads make ahead of their consumer, stacked into batches in a fixed order."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import numpy as np

Note = TypeVar("Note")
ArraySpec = tuple[str, tuple[int | None, ...]]  # dtype and shape of one of a row's arrays

_PREFETCH = 2  # batches
_ENDLESS = 2**62


def stacked_rows(
    make_row: Callable[[int], tuple[tuple, Note]],
    array_specs: Sequence[ArraySpec],
    rows: int,
    *,
    start: int = 0,
    stop: int | None = None,
    threads: int | None = None,
) -> Generator[tuple[tuple[np.ndarray, ...], list[Note]], None, None]:
    """Batches of `rows` rows each, by tf.data: the arrays of `make_row(start)`, ... in order.

    Args:
      make_row: number of a row -> its arrays, and a note for the consumer. It runs in threads and
        must not raise, since TensorFlow hides the error: put it into the note.
      array_specs: dtypes and shapes of the arrays; None for a dimension that differs between
        batches.
      rows: rows of a batch.
      start, stop: numbers of the first row and of the row after the last; None: endless.
      threads: how many threads make rows; None: one per core.

    Yields:
      The stacked arrays, and the notes of the rows.
    """
    tf = tensorflow()
    stream = _stacked(tf, make_row, array_specs, rows, start, stop, threads or os.cpu_count() or 1)
    close_at_exit(stream)
    return stream


def close_at_exit(stream: Generator) -> None:
    """Closes a stream that is still open when the program ends."""
    _close_streams_at_exit()
    _streams.add(stream)


_streams: weakref.WeakSet[Generator] = weakref.WeakSet()


@functools.cache
def _close_streams_at_exit() -> None:
    atexit.register(_close_streams)


def _close_streams() -> None:
    """Closes open streams when the program ends: threads that then wait for Python would hang."""
    for stream in list(_streams):
        with contextlib.suppress(ValueError):  # another thread is using it right now
            stream.close()


def _stacked(
    tf: Any,
    make_row: Callable[[int], tuple[tuple, Note]],
    array_specs: Sequence[ArraySpec],
    rows: int,
    start: int,
    stop: int | None,
    threads: int,
) -> Generator[tuple[tuple[np.ndarray, ...], list[Note]], None, None]:
    notes: dict[int, Note] = {}

    def call(number: np.ndarray) -> list[np.ndarray]:
        arrays, notes[int(number)] = make_row(int(number))
        return [np.asarray(a, dtype) for a, (dtype, _) in zip(arrays, array_specs, strict=True)]

    def row(number: Any) -> tuple[Any, ...]:
        tensors = tf.numpy_function(
            call, [number], [tf.as_dtype(dtype) for dtype, _ in array_specs]
        )
        for tensor, (_, shape) in zip(tensors, array_specs, strict=True):
            tensor.set_shape(shape)
        return tuple(tensors)

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    dataset = tf.data.Dataset.range(start, _ENDLESS if stop is None else stop)
    row = tf.autograph.experimental.do_not_convert(row)  # conversion would fail with long warnings
    dataset = dataset.map(row, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(rows, drop_remainder=True).prefetch(_PREFETCH).with_options(options)
    for arrays in dataset.as_numpy_iterator():
        yield arrays, [notes.pop(number) for number in range(start, start + rows)]
        start += rows


def tensorflow() -> Any:
    """Imports TensorFlow without accelerators, whose memory belongs to JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; avoids a long log message
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "reading batches needs TensorFlow; install the data extra: pip install "
            "'clipseg_jax[data]'"
        ) from error
    # A program that already runs TensorFlow on a device keeps that device.
    with contextlib.suppress(RuntimeError):
        for device in ("GPU", "TPU"):
            tf.config.set_visible_devices([], device)
    return tf
