"""Reads PyTorch checkpoints and safetensors without PyTorch; tensors are mapped, not copied.

Formats: spec clip, section 10. Pickles are read by `pickles`, which runs nothing that they name.
"""

from __future__ import annotations

import io
import mmap
import pickle
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clipseg_jax.core.safe_pickle import is_name, shown, sizes
from input_pipeline.places import is_remote, place
from input_pipeline.walk import open_regular
from weights_convert.errors import CheckpointError
from weights_convert.formats.foreign import foreign
from weights_convert.formats.pickles import Storage, is_scripted, resolve, unpickle
from weights_convert.formats.safetensors import parse

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WORTH_RELEASING = 2**20
# The bytes of a state dict may exceed the file's: expanded buffers, weights of several names.
_FREELY_REPEATED, _TIMES_STORED = 16 * 2**20, 4
_LARGEST_PICKLE = 256 * 2**20  # one of 100,000 tensors takes 20 MB
# To list an archive takes some 20 times the bytes of its directory; 100,000 members need 12 MB.
_LARGEST_DIRECTORY = 24 * 2**20
_LARGEST_NAMES, _BESIDE_A_NAME = 256 * 2**20, 100  # bytes; of 100,000 tensors: 20 MB
_end_record: Any = zipfile._EndRecData  # type: ignore[attr-defined]
_DIRECTORY_BYTES = 5  # its place in the record

# What the standard library raises while it reads a damaged structure.
DAMAGE = (
    pickle.UnpicklingError, EOFError, struct.error, ValueError, TypeError, KeyError, IndexError,
    AttributeError, OverflowError, MemoryError, RecursionError, NotImplementedError,
)  # fmt: skip


class Checkpoint(NamedTuple):
    """The content of a file."""

    kind: str  # "torchscript", "torch zip", "torch legacy", "safetensors"
    content: Any  # nested dicts, lists and numbers; tensors are read-only arrays


def map_file(path: Path) -> mmap.mmap:
    """Maps a file read-only.

    Raises:
      CheckpointError: too short for a checkpoint, or evidently something else; the message says
        what. OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if found := foreign(file.read(1024), size):
            raise CheckpointError(f"{path} is {found}")
        if size < 16:
            raise CheckpointError(f"{path} holds {size} bytes, too few for a checkpoint")
        if is_remote(path):
            return _mapped_copy(file)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _mapped_copy(file: BinaryIO) -> mmap.mmap:
    """Maps a local copy of an object of a bucket; the copy has no name, and goes with the map."""
    with tempfile.TemporaryFile() as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy)
        copy.flush()
        return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)


def release(array: np.ndarray) -> None:
    """Frees the memory of the file that an array maps; the pages are read again when needed.

    Otherwise the file would stay in memory beside the parameters that are copied from it.
    """
    base: Any = array
    while hasattr(base, "base"):  # of arrays, and of the objects that as_strided puts between them
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else None
    if (
        isinstance(mapped, mmap.mmap)
        and array.nbytes >= _WORTH_RELEASING
        and hasattr(mmap, "MADV_DONTNEED")
    ):
        mapped.madvise(mmap.MADV_DONTNEED)


def read(path: str | Path) -> Checkpoint:
    """The content of a .pt, .pth, .bin or .safetensors file, tensors as read-only mapped arrays.

    Raises:
      CheckpointError: another file, a damaged or truncated one, or one that would run code or fill
        the memory.
      OSError: no file, or one that cannot be read.
    """
    path = place(path)
    mapped = map_file(path)
    try:
        checkpoint = _read(path, mapped)
        named = tensors(checkpoint.content)
        total = sum(array.nbytes for array in named.values())
        if total > _FREELY_REPEATED + _TIMES_STORED * len(mapped):
            raise CheckpointError(
                f"tensors of {total:,} bytes in a file of {len(mapped):,}: they repeat its data by "
                "references or strides; save the weights with .clone()"
            )
        return checkpoint
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({described(error)}); it is damaged, truncated, "
            "or of another format than .pt, .pth, .bin, .safetensors"
        ) from error


def described(error: Exception) -> str:
    """An error of the standard library for a message: short, in one line, and printable."""
    text = " ".join(str(error).split())
    text = text if text.isprintable() else ascii(text)
    return f"{type(error).__name__}: {text[:200]}"


def _read(path: Path, mapped: mmap.mmap) -> Checkpoint:
    if mapped[:4] == b"PK\x03\x04":
        return _read_zip(path, mapped)
    # A safetensors file begins with its header's length, which may look like a pickle's start.
    if mapped[:1] == b"\x80" and mapped[8:9] != b"{":
        return Checkpoint("torch legacy", _read_legacy(mapped))
    return Checkpoint("safetensors", parse(mapped)[0])


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with open_regular(path) as file:
            end = _end_record(file)
            if end and end[_DIRECTORY_BYTES] > _LARGEST_DIRECTORY:
                raise CheckpointError(
                    f"a zip archive whose directory takes {end[_DIRECTORY_BYTES]:,} bytes"
                )
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise CheckpointError(
            f"a damaged zip archive ({described(error)}), probably truncated; download it again"
        ) from error
    names = {info.filename: info for info in members}
    if len(names) < len(members):
        raise CheckpointError("a zip archive with two members of one name; download it again")
    return names


def _read_zip(path: Path, mapped: mmap.mmap) -> Checkpoint:
    names = _members(path)
    roots = [n[: -len("/data.pkl")] for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(
            "a zip archive without PyTorch's data.pkl; if it holds a checkpoint, unpack it"
        )
    root = roots[0]

    def raw(name: str) -> memoryview:
        info, name = names.get(name), shown(name)
        if info is None:
            raise CheckpointError(
                f"{name} is missing in the archive; it is damaged, download it again"
            )
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{name} is compressed, which PyTorch does not support; zip the archive again "
                "without compression, or download it again"
            )
        start = info.header_offset
        if mapped[start : start + 4] != b"PK\x03\x04":
            raise CheckpointError(f"the header of {name} is damaged; download the file again")
        start += 30 + sum(struct.unpack("<HH", mapped[start + 26 : start + 30]))
        if start + info.file_size > len(mapped):
            raise CheckpointError(f"{name} extends beyond the end of the file; download it again")
        data = memoryview(mapped)[start : start + info.file_size]
        # 0: not computed, which PyTorch can be told.
        if info.CRC and zlib.crc32(data) != info.CRC:
            raise CheckpointError(f"{name} has another checksum than stated; download it again")
        release(np.frombuffer(data, np.uint8))
        return data

    storages: dict[str, Storage] = {}
    left = len(mapped)

    def load_storage(kind: Any, key: str, count: Any, *_: Any) -> Storage:
        nonlocal left
        storage = _same_or_new(storages, key, Storage(kind, count))
        if storage.data is None:
            data = raw(f"{root}/data/{key}")
            left -= storage.nbytes
            if min(len(data) - storage.nbytes, left) < 0:
                raise CheckpointError(
                    f"storage {shown(key)} has {len(data)} bytes, {storage.nbytes} expected; the "
                    "file is damaged, download it again"
                )
            storage.fill(data)
        return storage

    structure = raw(f"{root}/data.pkl")
    if len(structure) > _LARGEST_PICKLE:
        raise CheckpointError(f"a pickle of {len(structure):,} bytes, more than a state dict takes")
    if f"{root}/byteorder" in names and bytes(raw(f"{root}/byteorder")) not in (b"little", b""):
        raise CheckpointError("written on a big-endian machine; convert it there")
    content = unpickle(io.BytesIO(structure), load_storage, len(mapped))
    return Checkpoint("torchscript" if is_scripted(content) else "torch zip", resolve(content))


def _same_or_new(storages: dict[str, Storage], key: str, new: Storage) -> Storage:
    """The storage `key`, which is `new` when it is first referred to."""
    first = storages.setdefault(key, new)
    if (first.dtype, first.count) != (new.dtype, new.count):
        raise CheckpointError(
            f"storage {shown(key)} is used as {first.count} x {first.dtype} and as {new.count} x "
            f"{new.dtype}; the file is damaged"
        )
    return first


def _read_legacy(mapped: mmap.mmap) -> Any:
    storages: dict[str, Storage] = {}
    views: dict[tuple[str, int, int], Storage] = {}  # parts, by whole, first element and count

    def load_storage(kind: Any, key: str, count: Any, view: Any = None, *_: Any) -> Storage:
        whole = _same_or_new(storages, key, Storage(kind, count))
        if view is None:
            return whole
        _, offset, size = view
        offset, size = sizes((offset, size))
        if (key, offset, size) in views:
            return views[key, offset, size]
        part = Storage(kind, size)
        if offset > whole.count - part.count:
            raise CheckpointError(
                f"elements {offset} to {offset + part.count} of storage {shown(key)}, which has "
                f"{whole.count}; the file is damaged"
            )
        views[key, offset, size] = part
        return part

    def load() -> Any:  # from the map itself: a copy would be as large as the file
        return unpickle(mapped, load_storage, len(mapped))

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise CheckpointError("a pickle that torch.save did not write")
    machine = load()
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise CheckpointError("written on a big-endian machine; convert it there")
    content = load()
    keys = load()
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise CheckpointError("a list of storages that torch.save did not write")
    for key in keys:
        (count,) = struct.unpack("<q", mapped.read(8))
        storage = storages.get(key)
        if storage is None:
            raise CheckpointError(f"no tensor uses storage {shown(key)}")
        start = mapped.tell()
        if count != storage.count or start + storage.nbytes > len(mapped):
            raise CheckpointError(
                f"storage {shown(key)} of {storage.count} elements has {count} or extends beyond "
                "the end of the file; download it again"
            )
        storage.fill(memoryview(mapped)[start : start + storage.nbytes])
        mapped.seek(start + storage.nbytes)
    if lost := [key for key, storage in storages.items() if storage.data is None]:
        shortened = ", ".join(map(shown, lost[:5]))
        raise CheckpointError(f"no data for the storages {shortened}; download it again")
    for (key, offset, size), part in views.items():
        part.data = storages[key].data[offset : offset + size]  # type: ignore[index]
    return resolve(content)


def tensors(content: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """All arrays of nested dictionaries, by their keys joined with dots.

    Raises:
      CheckpointError: a name that no terminal shows, a very long one, or very many.
    """
    out: dict[str, np.ndarray] = {}
    taken = 0
    for name, array in _named(content, prefix):
        taken += len(name) + _BESIDE_A_NAME
        if taken > _LARGEST_NAMES:
            raise CheckpointError(
                f"names of tensors of more than {_LARGEST_NAMES:,} bytes, by parts that are "
                "referred to many times; save the weights alone (model.state_dict())"
            )
        out[name] = array
    return out


def _named(content: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(value, (np.ndarray, Mapping)):
            continue
        name = f"{prefix}{key}"
        if not is_name(name):
            raise CheckpointError(f"a tensor's name {shown(name)} of {len(name)} letters")
        if isinstance(value, np.ndarray):
            yield name, value
        else:
            yield from _named(value, f"{name}.")
