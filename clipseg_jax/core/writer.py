"""Logs a run as JSON lines and as TensorBoard events: scalars, pictures, tables."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import text as text_summary

from clipseg_jax.core.copied_folder import CopiedFolder
from clipseg_jax.core.json_lines import RemoteLines, json_line, read_lines, write_lines
from input_pipeline.places import is_remote
from input_pipeline.writing import CannotWrite

_NOTHING: Mapping = {}
_COPIED_S = 60.0  # between copies of a growing file of events to a bucket


class Shown(NamedTuple):
    """What TensorBoard alone shows of a step, by its tag; a tag "a/b" is b in the group a."""

    scalars: Mapping[str, float] = _NOTHING
    images: Mapping[str, np.ndarray] = _NOTHING  # (h, w, 3) uint8
    texts: Mapping[str, str] = _NOTHING  # Markdown


class Events:
    """TensorBoard's events of one run, which begin with the first that is written.

    TensorBoard drops what an earlier run logged in the same folder from step `start` on.

    Raises:
      CannotWrite: from every method; the disk is full, for instance. TensorBoard's own writer would
        end in a background thread, and block the run later.
    """

    def __init__(self, folder: Path, *, start: int = 0):
        self._folder, self._start = folder, start
        self._file: EventsWriter | None = None
        self._copied: CopiedFolder | None = None

    def write(self, step: int, scalars: Mapping[str, float], shown: Shown | None = None) -> None:
        """Logs a step."""
        more = shown or Shown()
        numbers = {**scalars, **more.scalars}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        values += [Summary.Value(tag=tag, image=_jpeg(each)) for tag, each in more.images.items()]
        for tag, text in more.texts.items():
            values += text_summary(tag, text).value
        with _writing(self._folder):
            if self._file is None:
                self._file = self._begin()
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
            self._file.write_event(event)
            self._file.flush()
            if self._copied is not None:
                self._copied.flush(every_s=_COPIED_S)

    def flush(self) -> None:
        """In a bucket: writes the events so far, which otherwise are there within a minute."""
        if self._copied is not None:
            self._copied.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with _writing(self._folder):
                self._file.close()
                if self._copied is not None:
                    self._copied.close()

    def _begin(self) -> EventsWriter:
        # Named after the second in which it begins; two may begin in one.
        number = len([*self._folder.glob("events.*")]) if self._folder.exists() else 0
        folder = self._folder
        if is_remote(folder):
            self._copied = CopiedFolder(folder)
            folder = self._copied.local
        folder.mkdir(parents=True, exist_ok=True)
        file = EventsWriter(str(folder / "events"), filename_suffix=f".{number}")
        file.write_event(Event(step=self._start, session_log=SessionLog(status=SessionLog.START)))
        return file


class Writer:
    """Appends to `folder/NAME.jsonl` and to TensorBoard events; writes nothing if not `active`.

    A run that resumes at step `start` drops later lines, so that each step is logged once.

    Raises:
      CannotWrite: from every method.
    """

    def __init__(self, folder: Path, name: str, *, start: int = 0, active: bool = True):
        self._path, self._active = folder / f"{name}.jsonl", active
        self._events = Events(folder / "tensorboard" / name, start=start + 1)
        kept = [line for line in read_lines(self._path, step=int) if line["step"] <= start]
        # Steps logged by earlier runs; known in every process.
        self.steps = {line["step"] for line in kept}
        self._remote: RemoteLines | None = None
        if active:
            write_lines(self._path, kept)
            self._remote = RemoteLines(self._path) if is_remote(self._path) else None

    def write(self, step: int, scalars: Mapping[str, float], shown: Shown | None = None) -> None:
        """Logs `scalars` of a step, and in TensorBoard what else is `shown`."""
        if not self._active:
            return
        line = json_line({"step": step, **scalars})
        if self._remote:
            self._remote.write(line)
        else:
            with _writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        self._events.write(step, scalars, shown)

    def flush(self) -> None:
        """Writes what a bucket does not have yet; due before a checkpoint of the same step."""
        if self._remote:
            self._remote.flush()
            self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        if self._remote:
            self._remote.close()
        self._events.close()


def _jpeg(image: np.ndarray) -> Summary.Image:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    height, width, colours = image.shape
    return Summary.Image(
        height=height, width=width, colorspace=colours, encoded_image_string=file.getvalue()
    )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"cannot write {path}: {error.strerror or error}; free space there, and run the "
            "command again to resume"
        ) from error
