"""MATLAB files of version 5: the arrays of class ids of Pascal Context and SBD, and nothing else.

SciPy's reader crashes the process on damaged files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_HEADER = 128
_BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
_TYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_STRUCT, _FIRST_NUMERIC = 2, 6  # classes of arrays
_MAX_BYTES = 1 << 28  # of a decompressed array
_HEAD = 1 << 10  # bytes in which an array has its flags, shape and name
_NAMES = ("LabelMap", "GTcls")


class _Element(NamedTuple):
    kind: int
    data: memoryview


class _Array(NamedTuple):
    """An array whose content is not yet read: `parts` follow its flags, shape and name."""

    name: str
    kind: int
    shape: tuple[int, ...]
    parts: Iterator[_Element]


def read_ids(content: bytes) -> np.ndarray:
    """Ids (h, w) of LabelMap, or of Segmentation in the structure GTcls, in the stored type.

    Raises:
      ValueError: not a file of version 5, damaged, or without ids.
    """
    order = _BYTE_ORDERS.get(content[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("it is not a MATLAB file of version 5")
    try:
        for element in _elements(memoryview(content)[_HEADER:], order):
            if element.kind == _COMPRESSED:
                # Others may be many, and each a thousand times as large as in the file.
                if _array(_head(element.data, order), order).name not in _NAMES:
                    continue
                (element,) = _elements(_decompressed(element.data), order)
            array = _array(element, order)
            if array.name == "LabelMap":
                return _values(array, order)
            if array.name == "GTcls":
                return _values(_field(array, "Segmentation", order), order)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error
    raise ValueError("it contains neither LabelMap nor GTcls")


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # a short one, whose data is in its tag
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
            end = at + 8
        else:
            end = start + length
        if start + length > end or end > len(data):
            raise ValueError("it is damaged: an element is longer than what contains it")
        yield _Element(kind, data[start : start + length])
        at = end if kind == _COMPRESSED else end + -end % 8


def _head(data: memoryview, order: str) -> _Element:
    """The beginning of a compressed element."""
    head = zlib.decompressobj().decompress(data, _HEAD)
    kind, _ = struct.unpack_from(f"{order}II", head)
    return _Element(kind, memoryview(head)[8:])


def _decompressed(data: memoryview) -> memoryview:
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(data, _MAX_BYTES)
    if decompressor.unconsumed_tail:
        raise ValueError(f"it is damaged: an array has more than {_MAX_BYTES} bytes")
    return memoryview(content)


def _array(element: _Element, order: str) -> _Array:
    if element.kind != _MATRIX:
        raise ValueError(f"it is damaged: an element of type {element.kind}")
    parts = _elements(element.data, order)
    flags, shape, name = (_next(parts) for _ in range(3))
    (kind,) = struct.unpack_from(f"{order}I", flags.data)
    sizes = struct.unpack(f"{order}{len(shape.data) // 4}i", shape.data)
    return _Array(str(name.data, "latin-1"), kind & 0xFF, sizes, parts)


def _next(parts: Iterator[_Element]) -> _Element:
    element = next(parts, None)
    if element is None:
        raise ValueError("it is damaged: an array is cut short")
    return element


def _field(array: _Array, name: str, order: str) -> _Array:
    """A field of a structure."""
    if array.kind != _STRUCT or array.shape != (1, 1):
        raise ValueError(f"{array.name} is not one structure")
    (length,) = struct.unpack_from(f"{order}I", _next(array.parts).data)
    names = bytes(_next(array.parts).data)
    if not 0 < length <= len(names):
        raise ValueError(f"{array.name} has no fields")
    for start in range(0, len(names), length):
        field = _next(array.parts)
        if names[start : start + length].rstrip(b"\0") == name.encode():
            return _array(field, order)
    raise ValueError(f"{array.name} has no field {name}")


def _values(array: _Array, order: str) -> np.ndarray:
    stored = _next(array.parts)
    if array.kind < _FIRST_NUMERIC or stored.kind not in _TYPES or len(array.shape) != 2:
        raise ValueError(f"its ids are an array of class {array.kind} and shape {array.shape}")
    values = np.frombuffer(stored.data, np.dtype(order + _TYPES[stored.kind]))
    if min(array.shape) < 1 or array.shape[0] * array.shape[1] != len(values):
        raise ValueError(f"its ids are {len(values)} values of shape {array.shape}")
    return values.reshape(array.shape, order="F")
