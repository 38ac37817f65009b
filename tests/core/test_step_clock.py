"""Where the time of a training goes, with a clock that is set by hand."""

from __future__ import annotations

from clipseg_jax.core import step_clock
from clipseg_jax.core.step_clock import StepClock


def test_times_of_steps_data_and_checkpoints(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(step_clock.time, "monotonic", lambda: now[0])
    clock = StepClock()
    now[0] += 50  # compilation
    clock.restart()
    for images in (8, 8):
        with clock.waiting_for_data():
            now[0] += 1.0
        now[0] += 3.0
        clock.step(images)
    with clock.saving():
        now[0] += 2.0
    assert clock.numbers() == {
        "images_per_second": 1.6,
        "step_seconds": 4.0,
        "data_wait": 0.2,
        "checkpoint_seconds": 2.0,
    }
    # A checkpoint before an evaluation, whose time is left out, is told with the steps after it.
    with clock.saving():
        now[0] += 7.0
    now[0] += 60.0
    clock.restart()
    now[0] += 5.0
    clock.step(10)
    assert clock.numbers() == {
        "images_per_second": 2.0,
        "step_seconds": 5.0,
        "data_wait": 0.0,
        "checkpoint_seconds": 7.0,
    }
