"""Logs scalars of a run as JSON lines and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from clipseg_jax.core.files import write_atomic


class Writer:
    """Appends to `folder/NAME.jsonl` and to TensorBoard events; writes nothing if not `active`.

    A run that resumes at step `start` drops later lines, so that each step is logged once.
    """

    def __init__(self, folder: Path, name: str, *, start: int = 0, active: bool = True):
        self._path = folder / f"{name}.jsonl"
        self._events: SummaryWriter | None = None
        lines = read_lines(self._path) if self._path.exists() else []
        kept = [line for line in lines if line["step"] <= start]
        self.steps = {
            line["step"] for line in kept
        }  # steps logged by earlier runs, in every process
        if not active:
            return
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(self._path, lambda file: file.write(text.encode("utf-8")))
        self._events = SummaryWriter(str(folder / "tensorboard" / name), purge_step=start + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs `scalars` of a step."""
        if self._events is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        if self._events is not None:
            self._events.close()


def read_lines(path: Path) -> list[dict]:
    """The records of a .jsonl file; stops at a line truncated by a kill."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
