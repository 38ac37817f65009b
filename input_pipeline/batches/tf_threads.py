"""Rows made by threads, ahead of their consumer, and stacked_rows into batches in a fixed order."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

Note = TypeVar("Note")
ArraySpec = tuple[str, tuple[int | None, ...]]  # dtype and shape of one of a row's arrays

_AHEAD = 2  # batches ready before they are asked for
_ENDLESS = 2**62


def stacked_rows(
    make: Callable[[int], tuple[tuple, Note]],
    kinds: Sequence[ArraySpec],
    rows: int,
    *,
    start: int = 0,
    stop: int | None = None,
    threads: int | None = None,
) -> Iterator[tuple[tuple[np.ndarray, ...], list[Note]]]:
    """Batches of `rows` rows each, by tf.data: the arrays of `make(start)`, `make(start + 1)`, ...

    Args:
      make: number of a row -> its arrays, and a note for the consumer. It runs in threads, and must
        not raise: TensorFlow would garble the error, so it belongs into the note.
      kinds: what the arrays are; None where a dimension differs from batch to batch.
      stop: the first row that isn't made any more; None: there is no end.
      threads: how many make rows; None: one for each core.
    """
    tf = tensorflow()
    _watch_exit()
    stream = _stacked(tf, make, kinds, rows, start, stop, threads or os.cpu_count() or 1)
    _streams.add(stream)
    return stream


_streams: weakref.WeakSet[Generator] = weakref.WeakSet()


@functools.cache
def _watch_exit() -> None:
    atexit.register(_stop)


def _stop() -> None:
    """Ends what still runs when the program does: threads that then wait for Python would hang."""
    for stream in list(_streams):
        with contextlib.suppress(ValueError):  # in use at this moment, by another thread
            stream.close()


def _stacked(
    tf: Any,
    make: Callable[[int], tuple[tuple, Note]],
    kinds: Sequence[ArraySpec],
    rows: int,
    start: int,
    stop: int | None,
    threads: int,
) -> Generator[tuple[tuple[np.ndarray, ...], list[Note]], None, None]:
    notes: dict[int, Note] = {}

    def call(number: np.ndarray) -> list[np.ndarray]:
        arrays, notes[int(number)] = make(int(number))
        return [np.asarray(a, kind) for a, (kind, _) in zip(arrays, kinds, strict=True)]

    def row(number: Any) -> tuple[Any, ...]:
        tensors = tf.numpy_function(call, [number], [tf.as_dtype(kind) for kind, _ in kinds])
        for tensor, (_, shape) in zip(tensors, kinds, strict=True):
            tensor.set_shape(shape)
        return tuple(tensors)

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    made = tf.data.Dataset.range(start, _ENDLESS if stop is None else stop)
    row = tf.autograph.experimental.do_not_convert(row)  # it would try, fail, and say so at length
    made = made.map(row, num_parallel_calls=threads, deterministic=True)
    made = made.batch(rows, drop_remainder=True).prefetch(_AHEAD).with_options(options)
    for arrays in made.as_numpy_iterator():
        yield arrays, [notes.pop(number) for number in range(start, start + rows)]
        start += rows


def tensorflow() -> Any:
    """TensorFlow without accelerators: the memory of those belongs to JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and announced at length
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "reading batches needs TensorFlow; install the data extra: pip install "
            "'clipseg_jax[data]'"
        ) from error
    # A program that already runs TensorFlow on a device keeps it: that is its own choice.
    with contextlib.suppress(RuntimeError):
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
    return tf
