"""Reads .npy files that hold a pickled dictionary of arrays; loading one with NumPy runs any code."""

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

# What NumPy writes before one object, for versions 1 and 2 of the format.
_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)"
    rb"\{'descr': '\|O[48]?', 'fortran_order': (?:False|True), 'shape': \(\), \} *\n",
    re.DOTALL,
)


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
    if header is None:
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
