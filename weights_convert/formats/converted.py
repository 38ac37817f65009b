"""Converted files: safetensors by our paths, with a record and a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipseg_jax.core.files import write_atomic
from clipseg_jax.core.safe_pickle import shown
from input_pipeline.places import place
from input_pipeline.walk import open_regular
from weights_convert.errors import CheckpointError
from weights_convert.formats import safetensors as safetensors_file
from weights_convert.formats.reader import DAMAGE, described, map_file, release

FORMAT = "clipseg_jax CLIP 2"  # changed whenever older converted files must not be read


class Converted(NamedTuple):
    """Arrays by the model's paths and in its layout, values and dtypes as in the source."""

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]


def save_converted(path: str | Path, converted: Converted) -> Path:
    """Writes one safetensors file, its record in the metadata; atomic, with a checksum.

    Raises:
      OSError: the folder cannot be written, or the disk is full.
    """
    record = json.dumps(converted.record)
    metadata = {"clipseg_jax": record, "crc32": str(_checksum(record, converted.arrays))}
    return write_atomic(
        path,
        lambda file: safetensors_file.write(file, converted.arrays, metadata, after=release),
    )


def load_converted(path: str | Path, tag: str = FORMAT) -> Converted:
    """Reads a file of `save_converted` whose record has the format `tag`; views of the mapped file.

    Raises:
      CheckpointError: another file, one of another format, or a damaged one.
      FileNotFoundError: no file.
    """
    mapped = map_file(place(path))
    try:
        arrays, metadata = safetensors_file.parse(mapped)
        text = metadata.get("clipseg_jax", "{}")
        record = json.loads(text)
        if not isinstance(record, dict) or record.get("format") != tag:
            found = record.get("format") if isinstance(record, dict) else record
            found = repr(shown(found)) if isinstance(found, str) else shown(found)
            raise CheckpointError(
                f"{path} is of format {found}, not {tag!r}; give a file of that format, or convert "
                "its source again if it was written by another version"
            )
        damaged = str(_checksum(text, arrays)) != metadata["crc32"]
    except CheckpointError:
        raise
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged or truncated ({described(error)}); convert its source again"
        ) from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: its checksum differs; convert its source again")
    return Converted(arrays, record)


def is_converted(path: Path) -> bool:
    """Whether a file starts like a file of `save_converted`.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        head = file.read(4096)
    return head[8:9] == b"{" and b'"clipseg_jax"' in head


def stored_format(path: Path) -> str | None:
    """The format of a file of `save_converted`, without its checksum; None if it is damaged."""
    try:
        _, metadata = safetensors_file.parse(map_file(path))
        tag = json.loads(metadata["clipseg_jax"]).get("format")
        return tag if isinstance(tag, str) else None
    except (CheckpointError, *DAMAGE):
        return None


def _checksum(record: str, arrays: Mapping[str, np.ndarray]) -> int:
    value = zlib.crc32(record.encode())
    for name, array in arrays.items():
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(safetensors_file.raw_bytes(array), value)
        release(array)
    return value
