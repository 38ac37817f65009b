"""Paths on disks and in buckets: gs://, s3:// and az:// by `etils.epath`.

A bucket has objects, not files: each is written whole and appears at once, nothing is appended to
it, locked or mapped, and listing is slow. What reads and writes asks `is_remote` and does
accordingly; all else takes the paths of `place`, which have pathlib's methods.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

_SCHEMES = ("gs://", "s3://", "az://")
_LIBRARIES = ("tensorflow.", "google.", "gcsfs.", "s3fs.", "botocore.", "adlfs.", "aiohttp.")
# In the names of errors that another try does not mend.
_LASTING = ("Permission", "Unauthenticated", "Forbidden", "NotFound", "Unimplemented", "Invalid")


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
        raise _as_os_error(error, f"cannot read {os.fspath(path)}: ") from error


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
        raise _as_os_error(error) from error


@contextlib.contextmanager
def bucket_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what a bucket's library raises in the block into an OSError of one line.

    Of a path on this machine nothing is turned: the same libraries read local files too.

    Raises:
      OSError: with an `errno` of the network where another try may succeed.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not (is_remote(path) and type(error).__module__.startswith(_LIBRARIES)):
            raise
        raise _as_os_error(error, "the bucket failed: ") from error


def _as_os_error(error: Exception, what: str = "") -> OSError:
    name = type(error).__name__
    failed = OSError(what + " ".join(f"{name}: {error}".split())[:300])
    if not any(word in name for word in _LASTING):
        failed.errno = errno.EREMOTEIO
    return failed
