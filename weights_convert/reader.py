"""Reads PyTorch checkpoints without PyTorch, and without running anything they contain.

A pickle may only name what `_ALLOWED` lists by its exact (module, name), each entry a harmless
stand-in; everything else stops the reading. Tensor bytes are mapped, not copied. Formats: spec clip,
section 10.
"""

from __future__ import annotations

import codecs
import collections
import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file, the fault and the remedy."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    kind: str  # "torchscript", "torch zip", "torch legacy", "safetensors"
    content: Any  # nested dicts, lists and numbers; tensors are read-only arrays


STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
    "TypedStorage": np.uint8,
}


class _Storage:
    """Elements of one dtype; legacy files fill them in after the pickle that names them."""

    def __init__(self, dtype: Any, count: int, data: np.ndarray | None = None):
        self.dtype, self.count = np.dtype(dtype), count
        self.data = data


class _Tensor:
    """A view of a storage, made into an array once the storage is there."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any):
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        self.storage = storage
        self.offset, self.size, self.stride = int(offset), tuple(size), tuple(stride)

    def array(self) -> np.ndarray:
        storage, size, stride = self.storage, self.size, self.stride
        if len(size) != len(stride) or min((*size, *stride, self.offset), default=0) < 0:
            raise CheckpointError(f"tensor of size {size}, strides {stride}, offset {self.offset}")
        last = self.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if storage.data is None or (0 not in size and last >= len(storage.data)):
            raise CheckpointError(
                f"tensor of size {size} reaches beyond its storage of {storage.count} elements"
            )
        if 0 in size:
            return np.empty(size, storage.dtype)
        step = storage.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            storage.data[self.offset :], size, [s * step for s in stride], writeable=False
        )
        return view


class _Object(dict):
    """A TorchScript module: its attributes, nothing else."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module whose state is no dictionary")
        self.update(state)


class _Namespace(_Object):
    """argparse.Namespace as training scripts save it."""


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError("a numpy scalar of objects")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype, count=1)[0]


class _NumpyDtype:
    """numpy.dtype(code, align, copy), then its state: the byte order."""

    def __new__(cls, code: Any, *_: Any) -> Any:
        made = np.dtype(str(code))
        if made.hasobject:
            raise pickle.UnpicklingError("a numpy dtype of objects")
        return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if str(encoding) not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return codecs.encode(str(text), str(encoding))


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): lambda *_: None,
    ("argparse", "Namespace"): _Namespace,
    ("_codecs", "encode"): _encode,
}
for _name, _dtype in STORAGES.items():
    _ALLOWED["torch", _name] = _dtype
    _ALLOWED["torch.storage", _name] = _dtype
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "set"] = set
    _ALLOWED[_module, "dict"] = dict
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "scalar"] = _numpy_scalar
_ALLOWED["numpy", "dtype"] = _NumpyDtype
for _name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"):
    _ALLOWED["torch.jit._pickle", _name] = _parameter
_ALLOWED["torch.jit._pickle", "restore_type_tag"] = _parameter


class _SafeUnpickler(pickle.Unpickler):
    """Builds only what `_ALLOWED` names; modules of TorchScript become plain dictionaries."""

    def __init__(self, file: Any, load_storage: Callable[[tuple], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Object
        if (module, name) not in _ALLOWED:
            raise CheckpointError(
                f"the pickle asks for {module}.{name}, which is no part of a state dict; nothing "
                "was run. Save the weights alone (torch.save(model.state_dict(), ...)) or as "
                ".safetensors"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        return self._load_storage(pid)


def read(path: str | Path) -> Checkpoint:
    """Everything in a .pt, .pth, .bin or .safetensors file, tensors as read-only mapped arrays.

    Raises:
      CheckpointError: not such a file, damaged or cut short, or one that would run code.
      FileNotFoundError: no file.
    """
    path = Path(path)
    with path.open("rb") as file:
        magic = file.read(16)
        if len(magic) < 16:
            raise CheckpointError(f"{path} holds {len(magic)} bytes: no checkpoint")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        if magic[:4] == b"PK\x03\x04":
            return _read_zip(path, mapped)
        if magic[:1] == b"\x80":
            return Checkpoint("torch legacy", _read_legacy(mapped))
        return Checkpoint("safetensors", _read_safetensors(mapped))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is a damaged zip archive ({error}), probably cut short; download it again"
        ) from error
    except (
        pickle.UnpicklingError, EOFError, struct.error, ValueError, TypeError, KeyError, IndexError,
        AttributeError, UnicodeDecodeError, OverflowError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{path} is no readable checkpoint ({type(error).__name__}: {error}); it is damaged, "
            "cut short, or of another format than .pt, .pth, .bin, .safetensors"
        ) from error


def _read_zip(path: Path, mapped: mmap.mmap) -> Checkpoint:
    archive = zipfile.ZipFile(path)
    names = {info.filename: info for info in archive.infolist()}
    roots = [n[: -len("/data.pkl")] for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError("a zip archive without PyTorch's data.pkl")
    root = roots[0]

    def raw(name: str) -> memoryview:
        info = names.get(name)
        if info is None:
            raise CheckpointError(f"the archive lacks {name}; it is damaged, download it again")
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{name} is compressed, which PyTorch never does")
        start = info.header_offset
        if mapped[start : start + 4] != b"PK\x03\x04":
            raise CheckpointError(f"the header of {name} is damaged; download the file again")
        lengths = struct.unpack("<HH", mapped[start + 26 : start + 30])
        start += 30 + sum(lengths)
        if start + info.file_size > len(mapped):
            raise CheckpointError(f"{name} reaches beyond the file's end; download it again")
        return memoryview(mapped)[start : start + info.file_size]

    storages: dict[str, _Storage] = {}

    def load_storage(pid: tuple) -> _Storage:
        _, dtype, key, _, count = pid[:5]
        if key not in storages:
            data = np.frombuffer(raw(f"{root}/data/{key}"), np.uint8)
            dtype = np.dtype(dtype)
            if len(data) < int(count) * dtype.itemsize:
                raise CheckpointError(
                    f"storage {key} has {len(data)} bytes, {int(count) * dtype.itemsize} expected"
                )
            usable = len(data) // dtype.itemsize * dtype.itemsize
            storages[key] = _Storage(dtype, int(count), data[:usable].view(dtype))
        return storages[key]

    byteorder = names.get(f"{root}/byteorder")
    if byteorder is not None and bytes(raw(byteorder.filename)) not in (b"little", b""):
        raise CheckpointError("written on a big-endian machine; convert it there")
    content = _SafeUnpickler(io.BytesIO(raw(f"{root}/data.pkl")), load_storage).load()
    scripted = isinstance(content, _Object) and not isinstance(content, _Namespace)
    return Checkpoint("torchscript" if scripted else "torch zip", _resolve(content))


def _read_legacy(mapped: mmap.mmap) -> Any:
    file = io.BytesIO(mapped)
    storages: dict[str, _Storage] = {}

    def load_storage(pid: tuple) -> _Storage:
        _, dtype, key, _, count = pid[:5]
        view = pid[5] if len(pid) > 5 else None
        storage = storages.setdefault(key, _Storage(dtype, int(count)))
        if view is None:
            return storage
        _, offset, size = view
        part = _Storage(dtype, int(size))
        part.data = None
        pending.append((part, storage, int(offset), int(size)))
        return part

    pending: list[tuple[_Storage, _Storage, int, int]] = []

    def load() -> Any:
        return _SafeUnpickler(file, load_storage).load()

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise CheckpointError("a pickle, but none that torch.save wrote")
    if not load().get("little_endian", True):
        raise CheckpointError("written on a big-endian machine; convert it there")
    content = load()
    position = None
    for key in load():
        position = file.tell()
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages.get(key)
        if storage is None:
            raise CheckpointError(f"storage {key} belongs to no tensor")
        size = count * storage.dtype.itemsize
        if count < 0 or position + 8 + size > len(mapped):
            raise CheckpointError(f"storage {key} reaches beyond the file's end; download it again")
        data = memoryview(mapped)[position + 8 : position + 8 + size]
        storage.data = np.frombuffer(data, storage.dtype)
        file.seek(position + 8 + size)
    for part, whole, offset, size in pending:
        part.data = None if whole.data is None else whole.data[offset : offset + size]
    return _resolve(content)


def _read_safetensors(mapped: mmap.mmap) -> Any:
    from weights_convert.safetensors_file import parse

    return parse(mapped)[0]


def _resolve(content: Any) -> Any:
    """Arrays for tensor stand-ins, plain containers for everything else."""
    if isinstance(content, _Tensor):
        return content.array()
    if isinstance(content, Mapping):
        return {key: _resolve(value) for key, value in content.items()}
    if isinstance(content, (list, tuple, set)):
        return [_resolve(value) for value in content]
    return content


def tensors(content: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """All arrays in nested dictionaries, by their keys joined with dots."""
    if not isinstance(content, Mapping):
        return {}
    out: dict[str, np.ndarray] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, np.ndarray):
            out[name] = value
        else:
            out |= tensors(value, f"{name}.")
    return out
