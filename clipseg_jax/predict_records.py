"""The records of `predict` in its output folder: which images are done, and with what settings.

`summary.jsonl` has a line for each image that is done, `skipped.jsonl` one for each that the last
run could not use, and `settings.json` what the masks depend on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipseg_jax.core.files import json_text, read_json, write_atomic, write_json
from input_pipeline.walk import open_regular
from input_pipeline.writing import CannotWrite, ends_with, is_whole_png

SUMMARY, SKIPPED, SETTINGS = "summary.jsonl", "skipped.jsonl", "settings.json"
OVERLAY, SCORES = "_overlay.jpg", ".npz"  # after the name of an image's results
_JPEG_END = b"\xff\xd9"
_LONGEST_NAME = 255 - len(OVERLAY)  # bytes


class Records:
    """The lines of an output folder's summary.jsonl: {"image", "mask", ..., "classes"}.

    Between them stands the image file's `stamp`, which tells when it was replaced.
    """

    def __init__(self, out: Path):
        self.out = out
        self.rows, self._tidy = _read(out / SUMMARY)
        self._names = {row["image"]: name for name, row in self.rows.items()}

    def name_of(self, path: Path) -> str | None:
        """The name of the results of an image that has some, under the same path."""
        return self._names.get(str(path))

    def holds(self, name: str, path: Path) -> bool:
        """Whether the results of this name are those of an image, which may have been moved."""
        row = self.rows.get(name)
        if row is None or row["image"] == str(path):
            return row is not None
        if os.path.exists(row["image"]):
            return os.path.exists(path) and os.path.samefile(row["image"], path)
        return "bytes" in row and _has_stamp(row, path)

    def is_free(self, name: str, path: Path) -> bool:
        """Whether an image's results may have this name: no results of another image have it."""
        return name not in self.rows or self.holds(name, path)

    def is_done(self, name: str, path: Path) -> bool:
        """Whether the image is as it was and its mask is whole."""
        return (
            self.holds(name, path)
            and _has_stamp(self.rows[name], path)
            and is_whole_png(self.out / f"{name}.png")
        )

    def forget(self, names: Iterable[str] | None) -> None:
        """Removes the lines of images that are made again; None: all. Also mends the file."""
        before = len(self.rows)
        gone = set(self.rows if names is None else names)
        self.rows = {name: row for name, row in self.rows.items() if name not in gone}
        if len(self.rows) < before or not self._tidy:
            text = "".join(json_text(row) + "\n" for row in self.rows.values())
            write_atomic(self.out / SUMMARY, lambda file: file.write(text.encode("utf-8")))
            self._tidy = True

    def add(
        self, name: str, path: Path, stamped: Mapping[str, int], classes: Mapping[str, Any]
    ) -> None:
        """Appends the line of an image whose results are written.

        `stamped`: the image's `stamp` from before it was read, so that one that is replaced
        meanwhile is segmented again by the next run.
        """
        row = {"image": str(path), "mask": f"{name}.png", **stamped, "classes": classes}
        line = (json_text(row) + "\n").encode("utf-8")
        try:
            # A single call, so that a kill leaves the whole line or none.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            file = os.open(self.out / SUMMARY, flags, 0o666)
            try:
                written = os.write(file, line)
            finally:
                os.close(file)
        except OSError as error:
            raise CannotWrite(f"cannot write {self.out / SUMMARY}: {error.strerror}") from error
        if written < len(line):
            raise CannotWrite(f"cannot write {self.out / SUMMARY}: the disk is full")
        self.rows[name] = row


def is_whole_overlay(out: Path, name: str) -> bool:
    """Whether the results of this name have an overlay that is whole."""
    return ends_with(out / f"{name}{OVERLAY}", _JPEG_END)


def stamp(path: Path) -> dict[str, int]:
    """Size and time of change of an image file; a moved file keeps both. Empty: there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return {}
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def recorded_results(folder: Path) -> set[Path]:
    """The masks and overlays that a folder's summary.jsonl names; empty without one."""
    if not (folder / SUMMARY).is_file():
        return set()
    rows, _ = _read(folder / SUMMARY)
    return {folder / f"{name}{suffix}" for name in rows for suffix in (".png", OVERLAY)}


def changed_settings(out: Path, settings: Mapping[str, Any]) -> list[str] | None:
    """The settings of which an output folder holds results of other values; None: of none at all.

    Raises:
      ValueError: a damaged settings.json.
    """
    path = out / SETTINGS
    if not path.exists():
        return None
    before = read_json(path, "choose another --out, or pass --overwrite to replace its masks")
    now = json.loads(json_text(settings))
    return sorted(key for key in {*now, *before} if before.get(key) != now.get(key))


def write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings.json."""
    write_json(out / SETTINGS, settings)


def write_skipped(out: Path, skipped: Iterable[tuple[Path, str]]) -> None:
    """Writes skipped.jsonl, {"image", "reason"} in a line; without any, removes it."""
    text = "".join(json_text({"image": str(p), "reason": why}) + "\n" for p, why in skipped)
    if text:
        write_atomic(out / SKIPPED, lambda file: file.write(text.encode("utf-8")))
    else:
        (out / SKIPPED).unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """The last line of each mask by the mask's name, and whether the file has nothing else."""
    rows: dict[str, dict[str, Any]] = {}
    takes: dict[str, bool] = {}  # whether results may lie in a folder
    if not path.exists():
        return rows, True
    with open_regular(path) as file:
        content = file.read()
    lines = content.split(b"\n")
    for line in lines[:-1]:
        try:
            row = json.loads(line)
            name = row["mask"].removesuffix(".png")
            folder = os.path.dirname(name)
            if folder not in takes:
                takes[folder] = _is_inside(path.parent, folder)
            if takes[folder] and _is_name(os.path.basename(name)) and type(row["image"]) is str:
                rows.pop(name, None)
                rows[name] = row
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # torn by a kill, or by an editor: its image is made again
    return rows, lines[-1] == b"" and len(rows) == len(lines) - 1


def leads_to(out: Path, folder: str) -> Path | None:
    """Where `folder`, a path below `out`, really lies if that is not below `out`, by a link."""
    real, root = Path(os.path.realpath(out / folder)), Path(os.path.realpath(out))
    return None if real.is_relative_to(root) else real


def _is_inside(out: Path, folder: str) -> bool:
    """Whether `folder` is a path below `out` where results may lie: no link, no file."""
    if os.path.isabs(folder) or ".." in Path(folder).parts or leads_to(out, folder):
        return False
    return os.path.isdir(out / folder) or not os.path.lexists(out / folder)


def _is_name(name: str) -> bool:
    return name not in ("", "..") and "\0" not in name and len(os.fsencode(name)) <= _LONGEST_NAME


def _has_stamp(row: Mapping[str, Any], path: Path) -> bool:
    """Whether an image file is the one of a line, whose stamp may be an earlier version's."""
    now = stamp(path)
    return bool(now) and all(row.get(key, value) == value for key, value in now.items())
