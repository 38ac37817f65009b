"""Graceful interruption: signals are recorded, and the training loop saves before it stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):  # noqa: N818
    """A signal stopped a run, which has saved its state."""

    def __init__(self, message: str, number: int = signal.SIGTERM):
        super().__init__(message)
        self.exit_code = 128 + number  # the shell's convention for "ended by that signal"


class Signals:
    """Context manager that records SIGTERM and Ctrl-C; a second Ctrl-C interrupts at once.

    With several processes JAX's own SIGTERM handler makes all of them stop at the same step.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Signals:
        # Python allows handlers in the main thread only; in other threads none are installed.
        main_thread = threading.current_thread() is threading.main_thread()
        if main_thread and jax.process_count() == 1:
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._previous = {n: signal.signal(n, self._record) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number

    def stop_at(self, step: int) -> bool:
        """Whether to stop after `step`; equal in every process."""
        if jax.process_count() == 1:
            return self.number is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.number = signal.SIGTERM
            return True
        return False
