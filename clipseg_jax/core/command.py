"""What all command lines share: user errors end in one line, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_code(run: Callable[[], object]) -> int:
    """Runs a command; 0, or 2 and one line for bad input, or 130 when the user stops it."""
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
