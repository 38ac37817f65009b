"""Error handling of all command lines: user errors print one line instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from clipseg_jax.core.interrupt import Interrupted


def exit_code(run: Callable[[], object]) -> int:
    """Runs a command and returns its exit code.

    0, or after printing one line: 2 for invalid input (ValueError, OSError), 128 + signal if
    interrupted.
    """
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    return 0
