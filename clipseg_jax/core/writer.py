"""Logs scalars of a run as JSON lines and TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from clipseg_jax.core.json_lines import json_line, read_lines, write_lines
from input_pipeline.writing import CannotWrite


class Writer:
    """Appends to `folder/NAME.jsonl` and to TensorBoard events; writes nothing if not `active`.

    A run that resumes at step `start` drops later lines, so that each step is logged once.

    Raises:
      CannotWrite: from every method; the disk is full, for instance. TensorBoard's own writer would
        end in a background thread, and block the run later.
    """

    def __init__(self, folder: Path, name: str, *, start: int = 0, active: bool = True):
        self._path = folder / f"{name}.jsonl"
        self._events: EventsWriter | None = None
        kept = [line for line in read_lines(self._path, step=int) if line["step"] <= start]
        # Steps logged by earlier runs; known in every process.
        self.steps = {line["step"] for line in kept}
        if not active:
            return
        write_lines(self._path, kept)
        with _writing(self._path):
            events = folder / "tensorboard" / name
            events.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(events / "events"))
            # TensorBoard drops what an earlier run logged from this step on.
            began = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=start + 1, session_log=began))
            self._events.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs `scalars` of a step."""
        if self._events is None:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with _writing(self._path):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json_line({"step": step, **scalars}))
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
            self._events.write_event(event)
            self._events.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._events is not None:
            with _writing(self._path):
                self._events.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"cannot write {path}: {error.strerror or error}; free space there, and run the "
            "command again to resume"
        ) from error
