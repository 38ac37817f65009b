"""What all command lines share: user errors end in one line, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from clipseg_jax.core.interrupt import Interrupted


def exit_code(run: Callable[[], object]) -> int:
    """Runs a command; 0, or after one line: 2 for bad input, 128 + signal when told to stop."""
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
