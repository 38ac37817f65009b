"""Writes a file that `torch.load(weights_only=True)` reads, without PyTorch.

The container is that of torch.save since 1.6: a zip of stored members, one pickle of the structure,
one member of raw bytes for each tensor. Spec clip, section 10.3.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clipseg_jax.core.files import write_atomic
from weights_convert.reader import STORAGES

_ALIGNMENT = 64
_STORAGE_OF = {
    np.dtype(dtype): name for name, dtype in STORAGES.items() if name not in ("UntypedStorage", "TypedStorage")
}  # fmt: skip


class _Global:
    """A name that the reading side looks up; nothing of that module exists here."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self, *args: Any) -> None:
        raise AssertionError("stands for a function of PyTorch; never called")


class _Storage:
    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array


_REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")


class _Pickler(pickle._Pickler):  # the C pickler refuses names that cannot be imported here
    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file: BinaryIO):
        super().__init__(file, protocol=2)
        self.storages: list[_Storage] = []

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        storage = _Storage(str(len(self.storages)), obj)
        self.storages.append(storage)
        strides, step = [], 1
        for n in reversed(obj.shape):
            strides.append(step)
            step *= n
        return _REBUILD, (
            storage,
            0,
            tuple(obj.shape),
            tuple(reversed(strides)),
            False,
            collections.OrderedDict(),
        )

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        kind = _Global("torch", _STORAGE_OF[obj.array.dtype])
        return ("storage", kind, obj.key, "cpu", int(obj.array.size))

    def save_name(self, obj: _Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    dispatch[_Global] = save_name


def write_torch(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes nested dictionaries of arrays, numbers and text as a torch zip file, atomically.

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    return write_atomic(path, lambda file: _write(file, content))


def _write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(content)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def add(name: str, data: bytes | memoryview) -> None:
            info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            # torch maps tensors from 64-byte boundaries; an extra field "FB" fills the gap.
            start = file.tell() + 30 + len(info.filename) + 4
            padding = -start % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, data)

        add("data.pkl", stream.getvalue())
        add("byteorder", b"little")
        for storage in pickler.storages:
            # One tensor at a time is made contiguous, so memory stays that of the largest.
            add(f"data/{storage.key}", np.ascontiguousarray(storage.array).tobytes())
        add("version", b"3\n")
