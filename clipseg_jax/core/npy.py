"""Reads .npy files of strangers: an array, or one pickled dictionary of arrays.

NumPy's own loader would run any code that such a dictionary names.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.core.safe_pickle import (
    ENCODE,
    Function,
    NumpyDtype,
    SafeUnpickler,
    Sealed,
    Table,
    resolve,
    shown,
    sizes,
)
from input_pipeline.walk import open_regular

# As NumPy and others write it, for all versions of the format. NumPy's own parser evaluates Python,
# and reserves memory for whatever shape a file names.
_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|[\x02\x03]\x00....)\{ ?'descr': ?'([^']{1,20})', ?"
    rb"'fortran_order': ?(False|True), ?'shape': ?\(((?:[0-9]{1,18}, ?)*[0-9]{0,18})\),? ?\} *\n",
    re.DOTALL,
)
_PLAIN = re.compile(r"[<>|=]?(?:[biufc][0-9]{1,2}|[US][0-9]{1,6}|\?|b1)")


class _NumpyArray(Sealed):
    """Stand-in for a pickled array: shape, dtype, memory order and content, checked before use."""

    __slots__ = ("state",)

    def __init__(self, *_: Any):
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], NumpyDtype):
            raise pickle.UnpicklingError("an array without a plain dtype")
        self.state = state

    def content(self) -> Any:
        """The array; a list if it holds objects."""
        if not self.state:
            raise pickle.UnpicklingError("an array without content")
        _, shape, dtype, fortran, data = self.state
        if dtype.code.startswith("O"):
            return data
        if type(data) is not bytes:
            raise pickle.UnpicklingError(f"{shown(data)} as the content of an array")
        array, shape = np.frombuffer(data, dtype.dtype), sizes(shape)
        if array.size != math.prod(shape):
            raise pickle.UnpicklingError(f"{array.size} numbers for an array of shape {shape}")
        return array.reshape(shape, order="F" if fortran is True else "C")


NUMPY: Table = {
    **ENCODE,
    ("numpy", "dtype"): Function(lambda *args: NumpyDtype(*args, objects=True)),
    ("numpy", "ndarray"): Function(_NumpyArray),
    ("numpy.core.multiarray", "_reconstruct"): Function(_NumpyArray),
    ("numpy._core.multiarray", "_reconstruct"): Function(_NumpyArray),
}


def parse_array(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file, a read-only view of them.

    Raises:
      ValueError, TypeError, UnpicklingError: other bytes, damaged ones, or an array of objects.
    """
    header = _HEADER.match(data)
    if header is None or not _PLAIN.fullmatch(code := header[1].decode("latin1")):
        raise ValueError("no .npy file of numbers or text")
    shape = sizes([int(number) for number in header[3].split(b",") if number.strip()])
    dtype = np.dtype(code)
    if len(data) - header.end() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data) - header.end()} bytes for {dtype} of shape {shape}")
    array = np.frombuffer(data, dtype, offset=header.end())
    return array.reshape(shape, order="F" if header[2] == b"True" else "C")


def read_dictionary(path: str | Path) -> dict[str, Any]:
    """The dictionary inside a .npy file that holds one object, with its arrays as arrays.

    Raises:
      ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError: another file,
        a damaged one, or one that names anything but arrays.
      OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        data = file.read()  # a pickle that names a length gets what is there, and reserves no more
    header = _HEADER.match(data)
    if header is None or header[1] not in (b"|O", b"O", b"|O8", b"|O4") or header[3]:
        raise ValueError("no .npy file of one dictionary")
    pickled = io.BytesIO(data)
    pickled.seek(header.end())
    content = SafeUnpickler(pickled, NUMPY, size=len(data)).load()
    if isinstance(content, _NumpyArray):
        content = content.content()
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if not isinstance(content, dict):
        raise ValueError(f"{shown(content)}, not a dictionary")
    return resolve(content, _leaf)


def _leaf(value: Any) -> Any:
    if not isinstance(value, _NumpyArray):
        return value
    content = value.content()
    if not isinstance(content, np.ndarray):
        raise pickle.UnpicklingError("an array of objects within another structure")
    return content
