"""Paths on disks and in buckets: gs://, s3:// and az:// by `etils.epath`.

A bucket has objects, not files: each is written whole and appears at once, nothing is appended to
it, locked or mapped, and listing is slow. What reads and writes asks `is_remote` and does
accordingly; all else takes the paths of `place`, which have pathlib's methods.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

_SCHEMES = ("gs://", "s3://", "az://")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is, or names, a place in a bucket."""
    return os.fspath(path).startswith(_SCHEMES)


def place(path: str | os.PathLike[str]) -> Path:
    """`path` as a path: pathlib's, or for buckets etils', which has the same methods.

    `Path` itself would make a local folder "gs:" of an address.
    """
    if not is_remote(path):
        return Path(path)
    from etils import epath  # a fifth of a second, for buckets alone

    return cast(Path, epath.Path(path))


def read_object(path: str | os.PathLike[str]) -> bytes:
    """The content of an object of a bucket.

    Raises:
      FileNotFoundError: there is none.
      OSError: it cannot be read; the message says why.
    """
    try:
        with place(path).open("rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "No such file or directory", os.fspath(path)) from error
    except OSError:
        raise
    except Exception as error:  # each library of a bucket has its own
        raise OSError(f"cannot read {os.fspath(path)}: {_one_line(error)}") from error


def write_object(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes an object of a bucket, whole.

    Raises:
      OSError: it cannot be written.
    """
    try:
        with place(path).open("wb") as file:
            file.write(content)
    except OSError:
        raise
    except Exception as error:
        raise OSError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    """An error of a bucket's library, shortened to a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
