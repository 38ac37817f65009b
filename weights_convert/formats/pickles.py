"""The structure of a PyTorch checkpoint without PyTorch: what its pickle may name.

Read by `safe_pickle.SafeUnpickler` with the table `_TORCH`. Formats: spec clip, section 10.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from clipseg_jax.core import safe_pickle
from clipseg_jax.core.safe_pickle import (
    ENCODE,
    Dictionary,
    ForbiddenNameError,
    Function,
    NumpyDtype,
    SafeUnpickler,
    Sealed,
    plain_set,
    shown,
    sizes,
)
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


# Strides of 0 make a tensor larger than its storage: expanded buffers, and giants of 4 bytes.
_TIMES_STORAGE, _FREELY_EXPANDED = 16, 1024  # elements


class _StorageType(Sealed):
    """Stand-in for a storage class such as torch.HalfStorage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)


class Storage(Sealed):
    """Elements of one dtype; in legacy files their data follow the pickle that refers to them."""

    __slots__ = ("count", "data", "dtype")

    def __init__(self, kind: Any, count: Any):
        (self.count,) = sizes((count,))
        if not isinstance(kind, _StorageType):
            raise pickle.UnpicklingError(f"a storage of {count} elements of kind {shown(kind)}")
        self.dtype = kind.dtype
        self.data: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return self.count * self.dtype.itemsize

    def fill(self, raw: memoryview) -> None:
        """Uses the first `nbytes` bytes of `raw` as the elements, without a copy."""
        self.data = elements(raw[: self.nbytes], self.dtype)


def elements(raw: memoryview, dtype: np.dtype) -> np.ndarray:
    """Raw bytes as elements, without a copy except for booleans: any byte but 0 is True."""
    if dtype == np.bool_:
        return np.frombuffer(raw, np.uint8) != 0
    return np.frombuffer(raw, np.uint8).view(dtype)


class _Tensor(Sealed):
    """A view of a storage, to become an array once the storage has its data."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        self.storage, (self.offset,) = storage, sizes((offset,))
        self.size, self.stride = sizes(size), sizes(stride)

    def array(self) -> np.ndarray:
        """The view.

        Raises:
          CheckpointError: it extends beyond its storage.
        """
        data, size, stride = self.storage.data, self.size, self.stride
        if len(size) != len(stride):
            raise CheckpointError(f"tensor of size {size}, strides {stride}")
        last = self.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if data is None or (0 not in size and last >= len(data)):
            raise CheckpointError(
                f"tensor of size {size} extends beyond its storage of {self.storage.count} "
                "elements; the file is damaged, download it again"
            )
        if 0 in size:
            return np.empty(size, data.dtype)
        if math.prod(size) > max(_TIMES_STORAGE * len(data), _FREELY_EXPANDED):
            raise CheckpointError(
                f"tensor of size {size} repeats the {len(data)} elements of its storage; save the "
                "weights with .contiguous()"
            )
        # Not as_strided: it takes ten times as long, which a file of many tensors multiplies.
        steps = [s * data.itemsize for s in stride]
        start, raw = self.offset * data.itemsize, data.view(np.uint8)
        view: np.ndarray = np.ndarray(size, data.dtype, raw, start, steps)
        view.flags.writeable = False
        return view


class Module(Dictionary):
    """Stand-in for a TorchScript module: its attributes only."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module whose state is not a dictionary")
        self.update(state)


class _Namespace(Module):
    """Stand-in for argparse.Namespace, which training scripts save."""


def _numpy_scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, NumpyDtype):
        raise pickle.UnpicklingError("a numpy scalar without a plain dtype")
    raw = data.encode("latin1") if isinstance(data, str) else data
    if type(raw) is not bytes:
        raise pickle.UnpicklingError(f"{shown(data)} as a numpy scalar")
    return np.frombuffer(raw, kind.dtype, count=1)[0].item()


def _first(value: Any, *_: Any) -> Any:
    return value


_TORCH: dict[tuple[str, str], Any] = {
    **ENCODE,
    # Classes, since pickles create objects of them without a call.
    ("collections", "OrderedDict"): Dictionary,
    ("argparse", "Namespace"): _Namespace,
    ("__torch__", "*"): Module,  # of TorchScript
    ("collections", "defaultdict"): Function(lambda *_: {}),
    ("torch", "Size"): Function(sizes),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_Tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_first),
    ("torch.serialization", "_get_layout"): Function(lambda *_: None),
    ("numpy", "dtype"): Function(NumpyDtype),
}
for _name, _dtype in STORAGES.items():
    _TORCH["torch", _name] = _TORCH["torch.storage", _name] = _StorageType(_dtype)
for _module in ("builtins", "__builtin__"):
    _TORCH[_module, "set"] = Function(plain_set)
    _TORCH[_module, "dict"] = Dictionary
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _TORCH[_module, "scalar"] = Function(_numpy_scalar)
for _name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"):
    _TORCH["torch.jit._pickle", _name] = Function(_first)
_TORCH["torch.jit._pickle", "restore_type_tag"] = Function(_first)


def unpickle(file: Any, load_storage: Callable[..., Storage], size: int) -> Any:
    """The structure of one pickle, with stand-ins for tensors; `resolve` turns them into arrays.

    `load_storage` gets the (kind, key, count, ...) of each reference to a storage; `size` is that
    of the whole file in bytes.

    Raises:
      CheckpointError: the pickle names something that is not part of a state dict.
      UnpicklingError and others: it is damaged.
    """

    def persistent_load(pid: Any) -> Storage:
        """The storage behind a reference ("storage", kind, key, location, count, ...)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown reference {shown(pid)}")
        _, kind, key, _, count, *rest = pid
        if type(key) is not str or len(key) > 1000:
            raise pickle.UnpicklingError(f"{shown(key)} as the name of a storage")
        return load_storage(kind, key, count, *rest)

    try:
        return SafeUnpickler(file, _TORCH, persistent_load, size).load()
    except ForbiddenNameError as error:
        raise CheckpointError(
            f"the pickle asks for {error.module}.{error.name}, which is not part of a state dict; "
            "nothing was run. Save the weights alone (torch.save(model.state_dict(), ...)) or as "
            ".safetensors"
        ) from error


def is_scripted(content: Any) -> bool:
    """Whether a pickle's outermost object is a TorchScript module."""
    return isinstance(content, Module) and not isinstance(content, _Namespace)


def resolve(content: Any) -> Any:
    """The structure with arrays for tensors, and plain dictionaries and lists for containers.

    Raises:
      CheckpointError: a tensor extends beyond its storage.
      UnpicklingError: a structure that `safe_pickle.resolve` refuses.
    """
    return safe_pickle.resolve(content, lambda v: v.array() if isinstance(v, _Tensor) else v)
