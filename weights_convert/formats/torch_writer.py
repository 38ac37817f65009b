"""Writes files that `torch.load(weights_only=True)` reads, without PyTorch.

The format is that of torch.save since 1.6: an uncompressed zip archive with one pickle of the
structure and one member of raw bytes per tensor. Spec clip, section 10.3.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clipseg_jax.core.files import write_atomic
from weights_convert.errors import CheckpointError
from weights_convert.formats.pickles import STORAGES
from weights_convert.formats.safetensors import raw_bytes

_ALIGNMENT = 64
_UNTYPED = ("UntypedStorage", "TypedStorage")
_STORAGE_OF = {np.dtype(kind): name for name, kind in STORAGES.items() if name not in _UNTYPED}


def write_torch(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes nested dictionaries of arrays, numbers and text as a torch zip file, atomically.

    Raises:
      CheckpointError: a value of another type, or an array of a dtype that PyTorch doesn't have.
      OSError: the folder cannot be written, or the disk is full.
    """
    return write_atomic(path, lambda file: _write(file, content))


def _write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    arrays: list[np.ndarray] = []
    structure = b"\x80\x02" + _pickled(content, arrays) + pickle.STOP
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes | memoryview) -> None:
            info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            # PyTorch maps tensors at 64-byte boundaries; an extra field "FB" fills the gap.
            start = file.tell() + 30 + len(info.filename) + 4
            padding = -start % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, data)

        add("data.pkl", structure)
        add("byteorder", b"little")
        for key, array in enumerate(arrays):
            # Tensors are made contiguous one by one, so the largest determines the memory.
            add(f"data/{key}", raw_bytes(array))
        add("version", b"3\n")


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Opcodes of protocol 2 that push `value`; its arrays are appended to `arrays`."""
    if value is None:
        return pickle.NONE
    if isinstance(value, bool):
        return pickle.NEWTRUE if value else pickle.NEWFALSE
    if isinstance(value, int):
        raw = pickle.encode_long(value)
        return pickle.LONG1 + bytes([len(raw)]) + raw
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode("utf-8")
        return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw
    if isinstance(value, (tuple, list)):
        parts = b"".join(_pickled(item, arrays) for item in value)
        if isinstance(value, tuple):
            return pickle.MARK + parts + pickle.TUPLE
        return pickle.EMPTY_LIST + pickle.MARK + parts + pickle.APPENDS
    if isinstance(value, Mapping):
        parts = b"".join(_pickled(item, arrays) for pair in value.items() for item in pair)
        return pickle.EMPTY_DICT + pickle.MARK + parts + pickle.SETITEMS
    if isinstance(value, np.ndarray) and value.dtype in _STORAGE_OF:
        return _pickled_tensor(value, arrays)
    what = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
    raise CheckpointError(f"a value of type {what} cannot be written for PyTorch")


def _pickled_tensor(value: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
    storage = (
        pickle.MARK
        + _pickled("storage", arrays)
        + _global("torch", _STORAGE_OF[value.dtype])
        + b"".join(_pickled(item, arrays) for item in (str(len(arrays)), "cpu", value.size))
        + pickle.TUPLE
        + pickle.BINPERSID
    )
    arrays.append(value)
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    rest = b"".join(_pickled(item, arrays) for item in (0, value.shape, strides, False))
    arguments = pickle.MARK + storage + rest + hooks + pickle.TUPLE
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")
