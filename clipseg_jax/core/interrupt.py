"""SIGTERM and Ctrl-C: a command ends at once, or after saving where a training has work to save."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipseg_jax.core.processes import leave, leaving

_ONE_SIGNAL_S = 1.0  # `timeout`, terminals and schedulers may send one signal twice
_PATIENCE_S = 3.0  # for the main thread, which may be in a long computation, to stop by itself
_AT_ONCE = "stopped; run the same command again to resume"


class Interrupted(KeyboardInterrupt):
    """A signal stopped a run; what was finished, or saved, is on disk."""

    def __init__(self, message: str = _AT_ONCE, number: int = signal.SIGTERM):
        super().__init__(message)
        self.exit_code = 128 + number  # the shell's convention for "ended by that signal"


class Signals:
    """What a signal does in the block of `signals()`.

    At first it raises `Interrupted`. Between `defer()` and `at_once()` it is only recorded, and
    `stop()` says so. A second one, later than a second, ends the process without saving.
    """

    def __init__(self) -> None:
        self._number: int | None = None  # of the first signal
        self._deferred = False
        self._over = False  # what a signal was to stop is over
        self._agreed: jax.Array | None = None

    def defer(self) -> None:
        """From now on there is work to save."""
        self._deferred = True

    def at_once(self) -> None:
        """From now on there is nothing to save.

        Raises:
          Interrupted: a signal was received meanwhile.
        """
        self._deferred = False
        if self._number is not None:
            self._over = True
            raise Interrupted(number=self._number)

    def stop(self) -> int | None:
        """The signal that stops the training after this step, or None; equal in all processes.

        All processes must make every call. With several, a signal counts one call late: the answer
        of all is computed on the devices, and nobody waits for it.
        """
        if jax.process_count() == 1:
            return self._number
        before, self._agreed = self._agreed, _highest(self._number or 0)
        return (before is not None and int(before)) or None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler; Python calls it in the main thread, once that is back from C++."""
        self._number = self._number or number
        swallowed = frame is not None and frame.f_code.co_name in _CALLBACKS
        if not (self._deferred or self._over or swallowed):
            self._over = True  # the next one is for `watch`: cleaning up must not be interrupted
            raise Interrupted(number=number)

    def watch(self, pipe: int) -> None:
        """Acknowledges signals, and ends a process whose main thread does not get to `handle`."""
        first: float | None = None  # the time of the first signal
        while received := os.read(pipe, 1):
            number = received[0]
            if number not in _NUMBERS:
                continue
            now = time.monotonic()
            if first is not None:
                if now < first + _ONE_SIGNAL_S:
                    continue
                leave(128 + number, "stopped at once")
            first, self._number = now, self._number or number
            if self._deferred:
                _say("stopping after this step and saving; once more to stop at once")
            else:
                _say("stopping")
                timer = threading.Timer(_PATIENCE_S, self._lose_patience, [number])
                timer.daemon = True
                timer.start()

    def _lose_patience(self, number: int) -> None:
        if not self._deferred and _current is self and not leaving():
            leave(128 + number, _AT_ONCE)


# Functions that the garbage collector calls, which swallows what they raise; then `watch` acts.
_CALLBACKS = ("_xla_gc_callback", "__del__")
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_current: Signals | None = None


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """The block's signals. An inner block has those of the outer one.

    Python allows handlers in the main thread only; in other threads nothing changes. A signal that
    the process was told to ignore (`nohup`, a background job of a script) stays ignored.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or Signals()
        return
    _current = Signals()
    read, write = os.pipe()
    os.set_blocking(write, False)
    watch = threading.Thread(target=_current.watch, args=[read], daemon=True)
    watch.start()
    heard = [n for n in _NUMBERS if signal.getsignal(n) is not signal.SIG_IGN]
    handlers = {n: signal.signal(n, _current.handle) for n in heard}
    # Written by the C handler, so that `watch` hears of a signal while the main thread computes.
    pipe_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield _current
    finally:
        _current._over = True
        signal.set_wakeup_fd(pipe_before)
        for number, handler in handlers.items():
            # None: a handler that Python cannot restore, such as JAX's.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _current = None
        os.close(write)
        watch.join()
        os.close(read)


def _say(text: str) -> None:
    # A line of its own, also below a progress bar.
    print(f"\n{text}", file=sys.stderr, flush=True)


def _highest(number: int) -> jax.Array:
    """The highest `number` of all processes, replicated; returns before it is computed."""
    sharded, maximum = _collective()
    rows = np.full(jax.local_device_count(), number, np.int32)
    return maximum(jax.make_array_from_process_local_data(sharded, rows))


@functools.cache
def _collective() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """How one number a device is placed, and the maximum of such an array."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("all")), jax.jit(jnp.max, out_shardings=everywhere)
