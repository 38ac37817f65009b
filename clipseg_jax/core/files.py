"""Files of a run's state: atomic writes, and readers that name the file and the remedy.

JSON has no NaN and no infinity: both are written as null.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.core.npy import parse_array
from input_pipeline.places import is_remote, place
from input_pipeline.walk import open_regular
from input_pipeline.writing import write_atomic

__all__ = [
    "check_local",
    "check_place",
    "check_writable",
    "json_text",
    "load_array",
    "load_arrays",
    "read_json",
    "write_atomic",
    "write_json",
]


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(path: str | Path, value: Any) -> Path:
    """Writes `value` as indented JSON, atomically; numbers that are not finite become null."""
    text = json_text(value, indent=2) + "\n"
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def read_json(path: str | Path, remedy: str, *, kind: type = dict) -> Any:
    """The content of a JSON file; NaN and infinity, which earlier versions wrote, are None.

    Args:
      path: the file.
      remedy: what to do about a damaged file; ends the error message.
      kind: Python type of the content.

    Raises:
      ValueError: a damaged file, or content of another type; names the file and the remedy.
      OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error, remedy) from error
    if not isinstance(value, kind):
        raise _damaged(path, f"{type(value).__name__} instead of {kind.__name__}", remedy)
    return value


def load_array(path: str | Path, remedy: str) -> np.ndarray:
    """The array of a .npy file; see `load_arrays`."""
    with open_regular(path) as file:
        try:
            array = parse_array(file.read())
        except Exception as error:
            raise _damaged(path, error, remedy) from error
    return array


def load_arrays(path: str | Path, remedy: str, *names: str) -> dict[str, np.ndarray]:
    """The arrays called `names` of a .npz file. Files with pickled objects are not read.

    Args:
      path: the file.
      remedy: what to do about a damaged file; ends the error message.
      names: of the arrays.

    Raises:
      ValueError: a damaged file, or one without these arrays; names the file and the remedy.
      OSError: the file cannot be opened.
    """
    with open_regular(path) as file:
        try:
            data = file.read()
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return {name: _member(archive, name, len(data)) for name in names}
        # zipfile raises more than a dozen kinds of errors for damaged files.
        except Exception as error:
            raise _damaged(path, error, remedy) from error


def _member(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    """An array of an archive of `size` bytes, in which nothing is compressed."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
        raise ValueError(f"{name} is compressed, or larger than the file")
    return parse_array(archive.read(info))


def check_writable(folder: str | Path) -> Path:
    """Creates `folder` and checks that files can be written there; returns it.

    Raises:
      OSError: the folder is not writable; the message says why and what to do.
    """
    folder = place(folder)
    write_atomic(folder / ".writable", lambda file: file.write(b"")).unlink()
    return folder


def check_local(path: str | Path, name: str) -> None:
    """Refuses an address such as gs://bucket, which would become a local folder of that name.

    Raises:
      ValueError: an address, or nothing; `name` is what the user calls it.
    """
    if not str(path).strip():
        raise ValueError(f"{name} is empty; is a variable of the shell not set?")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ValueError(
            f"{name}={path} is an address, not a folder; mount it (for instance with gcsfuse or "
            "mount-s3) or copy it, and pass that path"
        )


def check_place(path: str | Path, name: str) -> None:
    """Refuses an empty path, and an address other than of a bucket that can be written.

    Raises:
      ValueError: such a path, or a package that is missing; `name` is what the user calls it.
    """
    if not is_remote(path):
        check_local(path, name)
    elif os.fspath(path).startswith("gs://") and not _has("google.cloud.storage"):
        # Orbax asks for it, to remove old checkpoints.
        raise ValueError(
            f"{name}={path} needs a package that is missing; pip install 'clipseg_jax[data,gcs]'"
        )


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor the packages above it
        return False


def _damaged(path: str | Path, reason: object, remedy: str) -> ValueError:
    if isinstance(reason, Exception):
        # NumPy's remarks on pickles recommend to load them.
        pickled = "pickle" in str(reason)
        text = "pickled objects" if pickled else f"{type(reason).__name__}: {reason}"
        reason = " ".join(text.split())[:200].removesuffix(": ")
    return ValueError(f"{path} is damaged ({reason}); {remedy}")


def _finite(value: Any) -> Any:
    """`value` with None for every number that is not finite, in dictionaries and lists as well."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
