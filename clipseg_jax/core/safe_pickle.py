"""The restricted unpickler: a file builds only what a table allows, and runs nothing.

A table maps (module, name) to what a pickle gets in its place. Entries are stand-ins that a pickle
can neither change nor use for anything else; every other name stops the reading.
"""

from __future__ import annotations

import codecs
import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

Table = Mapping[tuple[str, str], Any]


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names a class or function that its table does not allow."""

    def __init__(self, module: str, name: str):
        super().__init__(f"the pickle asks for {module}.{name}, which is not allowed")
        self.module, self.name = module, name


class Sealed:
    """An object whose attributes no pickle can set (the BUILD instruction calls `__setstate__`)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{type(self).__name__} takes no state")


class Function(Sealed):
    """Something that a pickle may call; itself it cannot be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """Calls it."""
        return self._call(*args)


class NumpyDtype(Sealed):
    """Stand-in for `numpy.dtype(code, align, copy)`; of its state only the byte order is used.

    A real dtype would not do: NumPy shares them, and a pickle's state would change them.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any, objects: bool = False):
        allowed = r"[biufcSU][0-9]{1,4}|[?]" + ("|O8?" if objects else "")
        if not re.fullmatch(allowed, str(code)):
            raise pickle.UnpicklingError(f"a numpy dtype {code!r}")
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    @property
    def dtype(self) -> np.dtype:
        """The dtype itself, for the reader of the file."""
        return np.dtype(self.order + self.code)


class _NumpyArray(Sealed):
    """Stand-in for a pickled array: shape, dtype, memory order and content, checked before use."""

    __slots__ = ("state",)

    def __init__(self, *_: Any):
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)

    def content(self) -> Any:
        """The array; a list if it holds objects."""
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, NumpyDtype):
            raise pickle.UnpicklingError("an array without a plain dtype")
        if dtype.code.startswith("O"):
            return data
        array = np.frombuffer(data, dtype.dtype)
        if array.size != math.prod(shape):
            raise pickle.UnpicklingError(f"{array.size} numbers for an array of shape {shape}")
        return array.reshape(shape, order="F" if fortran else "C")


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if encoding not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return codecs.encode(str(text), encoding)


ENCODE: Table = {("_codecs", "encode"): Function(_encode)}
NUMPY: Table = {
    **ENCODE,
    ("numpy", "dtype"): Function(lambda *args: NumpyDtype(*args, objects=True)),
    ("numpy", "ndarray"): Function(_NumpyArray),
    ("numpy.core.multiarray", "_reconstruct"): Function(_NumpyArray),
    ("numpy._core.multiarray", "_reconstruct"): Function(_NumpyArray),
}


# The C unpickler reserves memory for whatever index or length a damaged file names, until the
# machine has none left; this one is slower, which a structure of some thousand names can bear.
_PureUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


def _refuse(_: Any) -> None:
    raise pickle.UnpicklingError("an instruction that no file of arrays and text needs")


_REFUSED = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4)


class SafeUnpickler(_PureUnpickler):
    """Unpickles with the names of `allowed` only.

    An entry (package, "*") allows every name in a package and in the packages below it.
    `persistent_load` returns the object behind a persistent id; without it there may be none.
    """

    dispatch: ClassVar[dict] = {
        **_PureUnpickler.dispatch,
        **{instruction[0]: _refuse for instruction in _REFUSED},
    }

    def __init__(
        self,
        file: Any,
        allowed: Table,
        persistent_load: Callable[[Any], Any] | None = None,
    ):
        super().__init__(file, encoding="utf-8")
        self._allowed, self._persistent_load = allowed, persistent_load

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name.

        Raises:
          ForbiddenNameError: a name that the table does not allow.
        """
        for key in ((module, name), (module.split(".")[0], "*")):
            if key in self._allowed:
                return self._allowed[key]
        raise ForbiddenNameError(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """The object behind a persistent id."""
        if self._persistent_load is None:
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        return self._persistent_load(pid)


def read_dictionary(path: str | Path) -> dict[str, Any]:
    """The dictionary inside a .npy file that holds one object, with its arrays as arrays.

    Raises:
      ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError: another file,
        a damaged one, or one that names anything but arrays.
    """
    with open(path, "rb") as file:
        return _dictionary(file)


def _dictionary(file: BinaryIO) -> dict[str, Any]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read_header(file)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"an array of {dtype} {shape}, not a dictionary")
    outer = SafeUnpickler(file, NUMPY).load()
    content = outer.content() if isinstance(outer, _NumpyArray) else outer
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a dictionary")
    return {k: v.content() if isinstance(v, _NumpyArray) else v for k, v in content.items()}
