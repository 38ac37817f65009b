"""Reads pickles from strangers: arrays, numbers and texts; nothing in a file is ever executed."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def read_dictionary(path: str | Path) -> dict[str, Any]:
    """The dictionary inside a .npy file that holds one object, with its arrays as arrays.

    Raises:
      ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError: another file,
        a damaged one, or one that would run something.
    """
    with open(path, "rb") as file:
        return _dictionary(file)


def _dictionary(file: BinaryIO) -> dict[str, Any]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else None
    shape, _, dtype = (read or np.lib.format.read_array_header_2_0)(file)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"an array of {dtype} {shape}, not a dictionary")
    outer = _Unpickler(file).load()
    content = outer.content() if isinstance(outer, _Array) else outer
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a dictionary")
    return {k: v.content() if isinstance(v, _Array) else v for k, v in content.items()}


class _Dtype:
    """numpy.dtype(code, align, copy) and then its state, of which the byte order counts."""

    def __init__(self, code: Any, *_: Any):
        if not re.fullmatch(r"[biuf][1248]|[O?]8?", str(code)):
            raise pickle.UnpicklingError(f"a numpy dtype {code!r}")
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """A pickled array: shape, dtype, memory order and content, checked before use."""

    def __init__(self, *_: Any):
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)

    def content(self) -> Any:
        """The array; a list if it holds objects."""
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array of no plain dtype")
        if dtype.code.startswith("O"):
            return data
        array = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
        if array.size != math.prod(shape):
            raise pickle.UnpicklingError(f"{array.size} numbers for an array of shape {shape}")
        return array.reshape(shape, order="F" if fortran else "C")


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return str(text).encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _Array


# The C unpickler reserves memory for whatever length a damaged file names.
_PureUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Unpickler(_PureUnpickler):
    """Makes stand-ins for arrays; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}") from None
