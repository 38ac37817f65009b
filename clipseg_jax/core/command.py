"""What all command lines share: user errors end in one line, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from clipseg_jax.core.interrupt import Interrupted
from input_pipeline import commands


def exit_code(run: Callable[[], object]) -> int:
    """Runs a command; 0, or after one line: 2 for an error, 128 + signal if interrupted."""

    def status() -> int:
        try:
            run()
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            return interrupted.exit_code
        return 0

    return commands.exit_code(status)
