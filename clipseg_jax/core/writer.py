"""Logs scalars of a run as JSON lines and TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from clipseg_jax.core.json_lines import json_line, read_lines, write_lines


class Writer:
    """Appends to `folder/NAME.jsonl` and to TensorBoard events; writes nothing if not `active`.

    A run that resumes at step `start` drops later lines, so that each step is logged once.
    """

    def __init__(self, folder: Path, name: str, *, start: int = 0, active: bool = True):
        self._path = folder / f"{name}.jsonl"
        self._events: SummaryWriter | None = None
        kept = [line for line in read_lines(self._path, step=int) if line["step"] <= start]
        # Steps logged by earlier runs; known in every process.
        self.steps = {line["step"] for line in kept}
        if not active:
            return
        write_lines(self._path, kept)
        self._events = SummaryWriter(str(folder / "tensorboard" / name), purge_step=start + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs `scalars` of a step."""
        if self._events is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_line({"step": step, **scalars}))
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        if self._events is not None:
            self._events.close()
