"""Reads a `.caffemodel` of DeepLab without Caffe, and renames its layers as deeplab-pytorch does.

A caffemodel is a protocol buffer (caffe.proto: NetParameter). Only the names and blobs of its
layers are read. Names: spec deeplab, section 9.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.core.safe_pickle import is_name, shown, sizes
from weights_convert.errors import CheckpointError
from weights_convert.formats.reader import DAMAGE, described, map_file

SUFFIX = ".caffemodel"

# Numbers of fields in caffe.proto.
_LAYER, _OLD_LAYER = 100, 2  # of NetParameter; V1LayerParameter is obsolete since 2015
_NAME, _BLOBS = 1, 7  # of LayerParameter
_SHAPE, _DATA = 7, 5  # of BlobProto
_OLD_SHAPE = (1, 2, 3, 4)
_DIM = 1  # of BlobShape
_MOST_BLOBS = 100  # of a layer; a batch norm has 3
_MOST_DIMS = 32  # of a blob; `sizes` refuses more
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types

_BRANCHES = {"1": "shortcut", "2a": "reduce", "2b": "conv3x3", "2c": "increase"}
_BLOCK = re.compile(r"(res|bn|scale)([2-5])([a-z])([0-9]*)_branch(1|2[abc])")
_STEM = {
    "conv1": ("res", "layer1.conv1"),
    "bn_conv1": ("bn", "layer1.conv1"),
    "scale_conv1": ("scale", "layer1.conv1"),
}
_ASPP = re.compile(r"fc1_.+_c([0-3])")
_COPIES = ("res075", "res05")  # the same layers at the other scales


def read_caffe(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by deeplab-pytorch's names without "base."; other layers by their Caffe names.

    Means and variances are divided by the scale factor that Caffe stores with them.

    Raises:
      CheckpointError: not a caffemodel, or a damaged or truncated one. FileNotFoundError: no file.
    """
    mapped = map_file(Path(path))
    out: dict[str, np.ndarray] = {}
    try:
        for number, value in _fields(memoryview(mapped)):
            if number == _OLD_LAYER:
                raise CheckpointError(
                    f"{path} has layers of before 2015 (V1LayerParameter); upgrade it with Caffe's "
                    "upgrade_net_proto_binary"
                )
            if number == _LAYER:
                name, blobs = _layer(value)
                arrays = _named(name, blobs)
                if out.keys() & arrays.keys():
                    raise ValueError(f"two layers are called {name}")
                out |= arrays
    except CheckpointError:
        raise
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is not a readable caffemodel ({described(error)}); it is damaged, truncated, "
            "or of another format"
        ) from error
    return out


def _named(name: str, blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The blobs of a layer, by name."""
    if not blobs or any(copy in name for copy in _COPIES):
        return {}
    if aspp := _ASPP.fullmatch(name):
        return _leaves(f"aspp.c{aspp.group(1)}", ("weight", "bias"), blobs)
    kind, unit = _STEM.get(name, ("", ""))
    if block := _BLOCK.fullmatch(name):
        kind, stage, letter, number, branch = block.groups()
        position = int(number) + 1 if number else "abcdefgh".index(letter) + 1
        unit = f"layer{stage}.block{position}.{_BRANCHES[branch]}"
    if kind == "res":
        return _leaves(f"{unit}.conv", ("weight", "bias"), blobs)
    if kind == "scale":
        return _leaves(f"{unit}.bn", ("weight", "bias"), blobs)
    if kind == "bn":
        mean, var, count = blobs
        divisor = count.reshape(-1)[0] or np.float32(1)  # 0 if the network was never trained
        if not 0 < divisor < np.inf:
            raise ValueError(f"layer {name} has the scale factor {divisor}")
        return _leaves(
            f"{unit}.bn", ("running_mean", "running_var"), [mean / divisor, var / divisor]
        )
    return _leaves(name, ("weight", "bias"), blobs)


def _leaves(unit: str, names: tuple[str, ...], blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    numbered = [*names, *map(str, range(len(names), len(blobs)))]
    return {f"{unit}.{leaf}": blob for leaf, blob in zip(numbered, blobs, strict=False)}


def _layer(message: memoryview) -> tuple[str, list[np.ndarray]]:
    name, blobs = "", []
    for number, value in _fields(message):
        if number == _NAME:
            name = bytes(value).decode()
            if not is_name(name):
                raise ValueError(f"a layer's name {shown(name)}")
        elif number == _BLOBS:
            blobs.append(_blob(value))
            if len(blobs) > _MOST_BLOBS:
                raise ValueError(f"layer {name} has more than {_MOST_BLOBS} blobs")
    return name, blobs


def _blob(message: memoryview) -> np.ndarray:
    """The data of a blob: a view, but of data in several parts a copy."""
    shape: list[int] | None = None
    old_shape: dict[int, int] = {}
    content: memoryview | bytearray | None = None
    for number, value in _fields(message):
        if number == _SHAPE:
            shape = _dims(value)
        elif number in _OLD_SHAPE and isinstance(value, int):
            old_shape[number] = value
        elif number == _DATA:
            if len(value) % 4:
                raise ValueError(f"a blob's data of {len(value)} bytes")
            if content is None:
                content = value
            else:  # each number by itself, perhaps: objects of their own would fill the memory
                content = content if isinstance(content, bytearray) else bytearray(content)
                content += value
    if shape is None:
        shape = [old_shape.get(number, 1) for number in _OLD_SHAPE]
        while len(shape) > 1 and shape[0] == 1:  # vectors were stored as (1, 1, 1, n)
            shape.pop(0)
    shape = list(sizes(shape))
    data = np.frombuffer(content or b"", "<f4")
    if data.size != math.prod(shape):
        raise ValueError(f"a blob of {data.size} values for the shape {shape}")
    return data.reshape(shape)


def _dims(message: memoryview) -> list[int]:
    dims: list[int] = []
    for number, value in _fields(message):
        if number == _DIM:
            dims += [value] if isinstance(value, int) else _varints(value)
        if len(dims) > _MOST_DIMS:
            break
    return dims


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message; the value is an int or a memoryview."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + length > len(message):
            raise EOFError(f"field {number} extends beyond the end")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A base-128 integer, least significant group first, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"an integer of more than 64 bits before byte {at}")


def _varints(message: memoryview) -> list[int]:
    out: list[int] = []
    at = 0
    while at < len(message) and len(out) <= _MOST_DIMS:
        value, at = _varint(message, at)
        out.append(value)
    return out
