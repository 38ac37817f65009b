"""Files on disk: the one walk over a folder, and opening what is really a file.

Folders, lists and images come from users and strangers. A name says nothing about what it stands
for: to open a named pipe blocks for ever, and a link may lead to a folder above.
"""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from input_pipeline.places import is_remote, read_object

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotAFile(OSError):  # noqa: N818
    """A path is a folder, named pipe, socket or device; the message names path and remedy."""


class Found(NamedTuple):
    """The files below a folder.

    Attributes:
      files: regular files, sorted.
      left_out: (path, reason) of what was not read, in the order of detection.
    """

    files: list[Path]
    left_out: list[tuple[Path, str]]


def find_files(
    root: str | os.PathLike[str],
    suffixes: Sequence[str],
    *,
    leave_out: Iterable[str | os.PathLike[str]] = (),
) -> Found:
    """All regular files below `root` whose name ends with one of `suffixes`, without hidden ones.

    Links are followed. Each folder is read once, under its own name rather than that of a link to
    it; a file counts under each of its names. Nothing is opened.

    Args:
      suffixes: in lower case, of names in any case; (): all files.
      leave_out: folders that are not entered, e.g. the one that results are written to.

    Returns:
      The files, and what has a name like them but is no file, or cannot be read: named pipes,
      sockets, devices, broken links, links to folders above, unreadable folders.

    Raises:
      OSError: `root` itself is not a folder that can be read.
    """
    root = Path(root)
    files: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    identity = _identity(os.stat(root))
    resolved = root.resolve()
    above = {_identity(os.stat(folder)) for folder in (resolved, *resolved.parents)}
    excluded = {_identity(os.stat(folder)) for folder in leave_out if os.path.isdir(folder)}
    seen = {identity: root}
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        is_link = not folders  # all folders first, so that they keep their own names
        folder = links.popleft() if is_link else folders.popleft()
        try:
            if folder is not root:
                identity = _identity(os.stat(folder))
                if identity in excluded:
                    continue
                if is_link and identity in above:
                    left_out.append((folder, "is a link to a folder above"))
                    continue
                if identity in seen:
                    left_out.append((folder, f"is the folder {seen[identity]} again"))
                    continue
                seen[identity] = folder
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder is root:
                raise
            left_out.append((folder, f"cannot be read ({error.strerror})"))
            continue
        for entry in listed:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            wanted = not suffixes or entry.name.lower().endswith(tuple(suffixes))
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif not wanted:
                    continue
                elif entry.is_file():
                    files.append(path)
                else:
                    left_out.append((path, f"is {_kind(os.stat(path).st_mode)}"))
            except FileNotFoundError:
                left_out.append((path, "is a broken link"))
            except OSError as error:  # e.g. a link to itself
                left_out.append((path, f"cannot be read ({error.strerror})"))
    return Found(sorted(files, key=lambda path: path.parts), left_out)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Checks that a path, or the target of a link, is a regular file.

    Raises:
      FileNotFoundError: there is nothing.
      NotAFile: it is a folder, a named pipe, a socket or a device.
      OSError: it cannot be reached.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise NotAFile(f"{os.fspath(path)} is {_kind(mode)}, not a file; give a regular file")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading; never blocks. Of a bucket: the object's content.

    Raises:
      OSError: as `check_regular`, or this user may not read it.
    """
    if is_remote(path):
        return io.BytesIO(read_object(path))
    check_regular(path)
    # Without blocking, in case that the file was replaced by a named pipe just now.
    file = io.FileIO(path, opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotAFile(f"{os.fspath(path)} is not a file any more; give a regular file")
    return _Reader(file)


class _Reader(io.BufferedReader):
    """A file that gives no more memory to a length in a damaged file than the file has bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _identity(result: os.stat_result) -> tuple[int, int]:
    return result.st_dev, result.st_ino


def _kind(mode: int) -> str:
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "no regular file")
