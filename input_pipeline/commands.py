"""What all command lines share: the parser, and errors that end in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m module`; wrong usage prints one line and exits with status 2."""
    return _Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def exit_code(
    run: Callable[[], int], *, interrupted: str = "stopped; run the same command again to resume"
) -> int:
    """Runs a command and returns its status; errors print one line instead of a traceback.

    Returns:
      What `run` returns; 2 after an error of input, files or a missing package; 130 after Ctrl-C,
      which prints `interrupted`.
    """
    try:
        return run()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
