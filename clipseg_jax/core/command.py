"""Error handling of all command lines: user errors print one line instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from clipseg_jax.core.interrupt import Interrupted
from input_pipeline import commands


def exit_code(run: Callable[[], object]) -> int:
    """Runs a command and returns its exit code.

    0, or after printing one line: 2 for invalid input, 74 for a failing disk, network or memory,
    128 + signal if interrupted.
    """

    def status() -> int:
        try:
            run()
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            return interrupted.exit_code
        return 0

    return commands.exit_code(status)
