"""A trace of some steps of a training, by JAX's profiler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from clipseg_jax.core.checks import check_whole
from clipseg_jax.core.copied_folder import CopiedFolder
from input_pipeline.places import is_remote


def check_profile_steps(steps: Sequence[int] | None) -> tuple[int, ...]:
    """`steps`: None, or the first and the last step that are traced, counted from 1.

    Raises:
      ValueError: anything else.
    """
    if not steps:
        return ()
    if len(steps) != 2:
        raise ValueError(
            f"profile_steps={tuple(steps)}; give the first and the last step, such as 10,14"
        )
    first = check_whole("profile_steps, the first", steps[0])
    return first, check_whole("profile_steps, the last", steps[1], least=first)


class StepTrace:
    """Traces steps `first` to `last` into a folder; every process traces its own devices.

    The profiler writes when it ends: a killed run leaves nothing, one that is stopped in between a
    whole trace of the steps that ran. A run that resumes in between traces the others.
    """

    def __init__(self, folder: Path, steps: Sequence[int] | None):
        self._folder = folder
        self._first, self._last = check_profile_steps(steps) or (0, -1)
        self._running = False
        self._copied: CopiedFolder | None = None

    def before(self, step: int) -> None:
        """Begins the trace if `step`, counted from 1, is to be traced."""
        if not self._running and self._first <= step <= self._last:
            self._copied = CopiedFolder(self._folder) if is_remote(self._folder) else None
            jax.profiler.start_trace(str(self._copied.local if self._copied else self._folder))
            self._running = True

    def ends_after(self, step: int) -> bool:
        """Whether `step` is the last one that is traced: the devices must have finished it."""
        return self._running and step >= self._last

    def close(self) -> None:
        """Writes the trace, if there is one."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if self._copied:
                self._copied.close()
