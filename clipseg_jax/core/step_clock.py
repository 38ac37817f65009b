"""Where the time of a training goes, between two lines of its log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class StepClock:
    """Times of the steps since the last `restart`, and of checkpoints since the last `numbers`."""

    def __init__(self) -> None:
        self._saving = 0.0  # seconds in which checkpoints held the training up
        self.restart()

    def restart(self) -> None:
        """Forgets the steps so far: what took time since them was no training."""
        self._began, self._steps, self._images = time.monotonic(), 0, 0
        self._waiting = self._saving_within = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """The block waits for a batch."""
        began = time.monotonic()
        yield
        self._waiting += time.monotonic() - began

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """The block saves, as far as training waits for it."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._saving += took
        self._saving_within += took

    def step(self, images: int) -> None:
        """Counts a step of so many images."""
        self._steps += 1
        self._images += images

    def numbers(self) -> dict[str, float]:
        """What a line of the log says of time; the next line begins here.

        images_per_second and step_seconds (the mean, without checkpoints) are of the steps since
        the last line; data_wait is the share of that time spent waiting for batches;
        checkpoint_seconds is what checkpoints took of it.
        """
        passed = max(time.monotonic() - self._began, 1e-9)
        said = {
            "images_per_second": self._images / passed,
            "step_seconds": max(passed - self._saving_within, 0.0) / max(self._steps, 1),
            "data_wait": self._waiting / passed,
            "checkpoint_seconds": self._saving,
        }
        self._saving = 0.0
        self.restart()
        return said
