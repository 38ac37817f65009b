"""Stopping in good order: signals are noted, and the loop saves before it leaves."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):  # noqa: N818
    """A run was asked to stop, and has saved what it had."""

    def __init__(self, message: str, number: int = signal.SIGTERM):
        super().__init__(message)
        self.exit_code = 128 + number  # what schedulers know as "ended by that signal"


class Signals:
    """Notes SIGTERM and Ctrl-C while active; a second Ctrl-C interrupts at once.

    With several processes JAX's own handler of SIGTERM makes all of them stop at the same step.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        # Only the main thread may set handlers; elsewhere (a notebook's worker) there are none.
        main_thread = threading.current_thread() is threading.main_thread()
        if main_thread and jax.process_count() == 1:
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number

    def stop_at(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer in every process."""
        if jax.process_count() == 1:
            return self.number is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.number = signal.SIGTERM
            return True
        return False
