"""Memory that several processes share, in slots of one batch each.

It has no name: a file descriptor leads to it, and it ends with the last process that has one or
uses its arrays. So nothing is left behind, and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence

import numpy as np

ArraySpec = tuple[str, tuple[int, ...]]  # dtype and shape of one of a row's arrays

_ALIGNED = 64  # bytes, so that JAX on CPUs can take an array as it is


class RowMemory:
    """`slots` batches of `rows` rows each.

    Attributes:
      file: leads to the memory; for the processes that write rows.
    """

    def __init__(
        self, specs: Sequence[ArraySpec], rows: int, slots: int, file: int | None = None
    ) -> None:
        """`file`: of the memory that another process made; None: makes it."""
        self._specs = [(np.dtype(dtype), (rows, *shape)) for dtype, shape in specs]
        self._offsets = [0]
        for dtype, shape in self._specs:
            size = math.prod(shape) * dtype.itemsize
            self._offsets.append(self._offsets[-1] + -(-size // _ALIGNED) * _ALIGNED)
        size = self._offsets[-1] * slots
        self.file = _new_file(size) if file is None else file
        self._memory = mmap.mmap(self.file, size)

    def close_file(self) -> None:
        """Closes the descriptor; the arrays stay."""
        os.close(self.file)

    def arrays(
        self, slot: int, unused: Callable[[], object] | None = None
    ) -> tuple[np.ndarray, ...]:
        """The arrays of a slot; `unused` is called once nothing refers to them any more."""
        size = self._offsets[-1]
        memory = (ctypes.c_char * size).from_buffer(self._memory, slot * size)
        if unused is not None:
            weakref.finalize(memory, unused).atexit = False
        return tuple(
            np.ndarray(shape, dtype, memoryview(memory), offset)
            for (dtype, shape), offset in zip(self._specs, self._offsets, strict=False)
        )


def _new_file(size: int) -> int:
    if hasattr(os, "memfd_create"):  # Linux
        file = os.memfd_create("rows")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)
    return file
