"""Unpickles the structure of a PyTorch checkpoint without PyTorch, and runs nothing it contains.

A pickle may only name what `_ALLOWED` lists by its exact (module, name), each entry a stand-in that
a pickle can neither change nor use for anything else; every other name stops the reading. Formats:
spec clip, section 10.
"""

from __future__ import annotations

import codecs
import collections
import pickle
import re
from collections.abc import Callable
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from weights_convert.errors import CheckpointError

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


class _Sealed:
    """An object whose attributes no pickle can set (the BUILD instruction asks `__setstate__`)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state for what has none")


class _Function(_Sealed):
    """What a pickle may call."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)


class _StorageType(_Sealed):
    """A name such as torch.HalfStorage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)


class Storage(_Sealed):
    """Elements of one dtype; legacy files fill them in after the pickle that names them."""

    __slots__ = ("count", "data", "dtype")

    def __init__(self, kind: Any, count: Any):
        if not isinstance(kind, _StorageType) or int(count) < 0:
            raise pickle.UnpicklingError(f"a storage of {count!r} elements of kind {kind!r}")
        self.dtype, self.count = kind.dtype, int(count)
        self.data: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return self.count * self.dtype.itemsize

    def fill(self, raw: memoryview) -> None:
        """Takes the first `nbytes` bytes of `raw` as the elements, not copied."""
        self.data = elements(raw[: self.nbytes], self.dtype)


def elements(raw: memoryview, dtype: np.dtype) -> np.ndarray:
    """Raw bytes as elements, without a copy but for booleans: there any byte but 0 means True."""
    if dtype == np.bool_:
        return np.frombuffer(raw, np.uint8) != 0
    return np.frombuffer(raw, np.uint8).view(dtype)


class _Tensor(_Sealed):
    """A view of a storage, made into an array once the storage is there."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        self.storage, self.offset = storage, int(offset)
        self.size, self.stride = tuple(map(int, size)), tuple(map(int, stride))

    def array(self) -> np.ndarray:
        data, size, stride = self.storage.data, self.size, self.stride
        if len(size) != len(stride) or min((*size, *stride, self.offset)) < 0:
            raise CheckpointError(f"tensor of size {size}, strides {stride}, offset {self.offset}")
        last = self.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if data is None or (0 not in size and last >= len(data)):
            raise CheckpointError(
                f"tensor of size {size} reaches beyond its storage of {self.storage.count} "
                "elements; the file is damaged, download it again"
            )
        if 0 in size:
            return np.empty(size, data.dtype)
        steps = [s * data.itemsize for s in stride]
        return np.lib.stride_tricks.as_strided(data[self.offset :], size, steps, writeable=False)


class Module(dict):
    """A TorchScript module: its attributes, nothing else."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module whose state is no dictionary")
        self.update(state)


class _Namespace(Module):
    """argparse.Namespace as training scripts save it."""


class _NumpyType:
    """numpy.dtype(code, align, copy) and then its state, of which the byte order counts.

    A real dtype would not do: numpy's are shared, and a pickle's state would change them.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any):
        if not re.fullmatch(r"[biufcSU][0-9]{1,4}", str(code)):
            raise pickle.UnpicklingError(f"a numpy dtype {code!r}")
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _numpy_scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _NumpyType):
        raise pickle.UnpicklingError("a numpy scalar of no plain dtype")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, np.dtype(kind.order + kind.code), count=1)[0].item()


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if encoding not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return codecs.encode(str(text), encoding)


def _first(value: Any, *_: Any) -> Any:
    return value


_ALLOWED: dict[tuple[str, str], Any] = {
    # Classes, since pickles make objects of them without calling; C types cannot be changed.
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): _Namespace,
    ("collections", "defaultdict"): _Function(lambda *_: {}),
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_Tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_first),
    ("torch.serialization", "_get_layout"): _Function(lambda *_: None),
    ("_codecs", "encode"): _Function(_encode),
    ("numpy", "dtype"): _Function(_NumpyType),
}
for _name, _dtype in STORAGES.items():
    _ALLOWED["torch", _name] = _ALLOWED["torch.storage", _name] = _StorageType(_dtype)
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "set"] = _Function(set)
    _ALLOWED[_module, "dict"] = _Function(dict)
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "scalar"] = _Function(_numpy_scalar)
for _name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"):
    _ALLOWED["torch.jit._pickle", _name] = _Function(_first)
_ALLOWED["torch.jit._pickle", "restore_type_tag"] = _Function(_first)


# The C unpickler reserves memory for whatever index or length a damaged file names, until the
# machine has none left; this one is slower, which a structure of some thousand names can bear.
_PureUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


def _no_bytearray(_: Any) -> None:
    raise pickle.UnpicklingError("a bytearray, of which no state dict has any")


class SafeUnpickler(_PureUnpickler):
    """Builds only what `_ALLOWED` names; modules of TorchScript become plain dictionaries.

    `load_storage` gets the (kind, key, count, ...) of each reference to a storage.
    """

    dispatch: ClassVar[dict] = {**_PureUnpickler.dispatch, pickle.BYTEARRAY8[0]: _no_bytearray}

    def __init__(self, file: Any, load_storage: Callable[..., Storage]):
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name.

        Raises:
          CheckpointError: any other name.
        """
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if (module, name) not in _ALLOWED:
            raise CheckpointError(
                f"the pickle asks for {module}.{name}, which is no part of a state dict; nothing "
                "was run. Save the weights alone (torch.save(model.state_dict(), ...)) or as "
                ".safetensors"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a reference ("storage", kind, key, location, count, ...) means."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        _, kind, key, _, count, *rest = pid
        return self._load_storage(kind, key, count, *rest)


def is_scripted(content: Any) -> bool:
    """Whether a pickle's outermost object is a TorchScript module."""
    return isinstance(content, Module) and not isinstance(content, _Namespace)


def resolve(content: Any) -> Any:
    """Arrays for tensor stand-ins, plain dictionaries and lists for every container.

    Raises:
      CheckpointError: a tensor that is larger than its storage.
    """
    if isinstance(content, _Tensor):
        return content.array()
    if isinstance(content, dict):
        return {key: resolve(value) for key, value in dict.items(content)}
    if isinstance(content, (list, tuple, set)):
        return [resolve(value) for value in content]
    return content
