"""The safetensors layout, mapped: 8 bytes of header length, JSON, raw little-endian arrays.

The safetensors package writes it; reading is done here because its NumPy reader copies every array
and refuses bfloat16.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000


def parse(mapped: mmap.mmap | bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, read-only views of `mapped`, and the metadata.

    Raises:
      ValueError: not this layout, or arrays that reach beyond the end.
    """
    (length,) = struct.unpack("<Q", mapped[:8])
    if not 2 <= length <= min(_LONGEST_HEADER, len(mapped) - 8) or mapped[8:9] != b"{":
        raise ValueError("no safetensors header")
    header = json.loads(bytes(mapped[8 : 8 + length]))
    metadata = header.pop("__metadata__", {})
    start = 8 + length
    out = {}
    for name, entry in header.items():
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if end - begin != size or begin < 0 or start + end > len(mapped):
            raise ValueError(f"{name} lies beyond the end of the file, which was cut short")
        raw = np.frombuffer(memoryview(mapped)[start + begin : start + end], np.uint8)
        out[name] = raw.view(dtype).reshape(shape)
    return out, metadata


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays one after the other, so that only one is copied at a time."""
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
        file.write(np.ascontiguousarray(array).tobytes())
