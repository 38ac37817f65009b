"""Error handling of all command lines: user errors print one line instead of a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax

from clipseg_jax.core.interrupt import Interrupted
from input_pipeline import commands

# What devices say of too little memory; the last one is of XLA's kernels on CPUs.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "ut of memory", "YNNPACK operation failed")


def exit_code(run: Callable[[], object]) -> int:
    """Runs a command and returns its exit code.

    0, or after printing one line: 2 for invalid input, 74 for a failing disk, network or memory,
    128 + signal if interrupted.
    """

    def status() -> int:
        try:
            run()
        except Interrupted as interrupted:
            commands.say(str(interrupted), error=True)
            return interrupted.exit_code
        except jax.errors.JaxRuntimeError as error:
            if any(words in str(error) for words in _OUT_OF_MEMORY):
                raise MemoryError from error
            raise
        except (RuntimeError, AssertionError) as error:
            if _has_devices():
                raise
            raise ValueError(
                f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}, and JAX finds no such "
                "devices here; unset it, or for NVIDIA's GPUs: pip install 'clipseg_jax[gpu]'"
            ) from error
        return 0

    return commands.exit_code(status)


def _has_devices() -> bool:
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):  # of a platform that is unknown or not installed
        return False
