"""Reads and writes safetensors: 8 bytes of header length, a JSON header, little-endian arrays.

Not the package `safetensors` (0.8.0), which copies what it reads: of a file of 300 MB it keeps
300 MB and reaches 600, this reader maps it and keeps none. Nor can it write one array at a time:
transposed views of 300 MB cost it another 300.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from clipseg_jax.core.safe_pickle import is_name, shown, sizes
from input_pipeline.json_memory import check_json
from weights_convert.formats.json_keys import once_each
from weights_convert.formats.pickles import elements

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 32 * 2**20  # parsed, it takes some 20 times as much; of 100,000 tensors: 12 MB


def parse(mapped: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, as read-only views of `mapped`, and the metadata.

    Raises:
      ValueError: another format, arrays that extend beyond the end or share bytes, a name twice.
      UnpicklingError, KeyError, TypeError, AttributeError, RecursionError: a damaged header.
    """
    (length,) = struct.unpack("<Q", mapped[:8])
    if not 2 <= length <= min(_LONGEST_HEADER, len(mapped) - 8) or mapped[8:9] != b"{":
        raise ValueError("no safetensors header")
    check_json(mapped[8 : 8 + length])
    header = json.loads(mapped[8 : 8 + length], object_pairs_hook=once_each)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise ValueError("metadata of anything but text")
    start = 8 + length
    found = {}
    for name, entry in header.items():
        if not is_name(name):
            raise ValueError(f"a tensor's name {shown(name)}")
        if type(entry["dtype"]) is not str or entry["dtype"] not in DTYPES:
            raise ValueError(f"{shown(name)} has the dtype {shown(entry['dtype'])}")
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), sizes(entry["shape"])
        begin, end = sizes(entry["data_offsets"])
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{shown(name)} of shape {shape} has {end - begin} bytes of {dtype}")
        if start + end > len(mapped):
            raise ValueError(
                f"{shown(name)} extends beyond the end of the file, which is truncated"
            )
        found[name] = begin, end, dtype, shape
    _check_places({name: place for name, (*place, _, _) in found.items()}, len(mapped) - start)
    data = memoryview(mapped)[start:]
    arrays = {
        name: elements(data[begin:end], dtype).reshape(shape)
        for name, (begin, end, dtype, shape) in found.items()
    }
    return arrays, metadata


def _check_places(places: dict[str, list[int]], size: int) -> None:
    """Every byte of the data belongs to one tensor, as the package `safetensors` has it too.

    Raises:
      ValueError: tensors that share bytes, which many of them could copy, or bytes of none.
    """
    position = 0
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        if begin < position:
            raise ValueError(f"{shown(name)} shares bytes of the file with another tensor")
        if begin > position:
            raise ValueError(f"bytes {position} to {begin} of the data belong to no tensor")
        position = end
    if position < size:
        raise ValueError(f"bytes {position} to {size} of the data belong to no tensor")


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order; an array in another order is copied."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def write(
    file: BinaryIO,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    after: Callable[[np.ndarray], None] = lambda array: None,
) -> None:
    """Writes arrays one by one, so that only one is copied at a time.

    `after` is called with each array after it is written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for array in arrays.values():
        file.write(raw_bytes(array))
        after(array)
