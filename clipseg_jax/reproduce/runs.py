"""One row after the other, each a process of its own: its log, signals, and what became of it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from clipseg_jax.core.run_lock import RunLock
from input_pipeline import commands
from input_pipeline.text_lists import escaped

_TAIL = 1 << 14  # bytes of a log that are read for its last lines
_POLL_S = 1.0


class Signals:
    """While it is open, Ctrl-C and SIGTERM go to the process that runs, which saves and ends.

    A signal that this process was told to ignore (`nohup`) stays ignored.

    Attributes:
      number: the first signal that came, or None.
      process: what runs now, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.process: subprocess.Popen | None = None
        self._before: dict[int, Callable | int | None] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = self.number or number
        if self.process is not None:
            self.process.send_signal(number)  # a second one ends it at once


def run(
    command: Sequence[str], log: Path, signals: Signals, show: Callable[[str], object]
) -> tuple[int, str]:
    """Runs a command to its end; all that it prints goes behind what the log has.

    Args:
      show: called every second with the last line that it printed.

    Returns:
      Its exit code, or less than 0 the signal that killed it; and in one line how it ended, which
      is its error where it told one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        # In a session of its own, so that a terminal's Ctrl-C comes once, through `signals`.
        signals.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        if signals.number is not None:  # it came while the process was made
            signals.process.send_signal(signals.number)
        while True:
            try:
                code = signals.process.wait(_POLL_S)
                return code, _ending(code, _last_lines(log, start))
            except subprocess.TimeoutExpired:
                show(next(iter(_last_lines(log, start)), ""))
    finally:
        signals.process = None


def wait_for_other(folder: Path, signals: Signals) -> None:
    """Returns once no run uses the folder, or a signal came.

    A run outlives the command that started it where that was killed.
    """
    told = False
    while signals.number is None:
        try:
            with RunLock(folder):
                return
        except ValueError as error:
            if not told:
                commands.say(f"{str(error).partition(';')[0]}; waiting for its end")
                told = True
            time.sleep(_POLL_S)


def _ending(code: int, lines: Sequence[str]) -> str:
    """How a run ended, in one line; `lines` are what it printed, the last one first."""
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[0].removeprefix("error: ")
    if code < 0:
        memory = "; was there too little memory?" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{memory}"
    return f"exit code {code}: {lines[0] if lines else 'it printed nothing'}"


def _last_lines(log: Path, start: int) -> list[str]:
    """The lines at the end of a log, the last one first, from the byte `start` on.

    Every terminal can show them.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(start, os.path.getsize(log) - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = reversed(text.replace("\r", "\n").splitlines())
    return [escaped(line.strip()) for line in lines if line.strip()]
