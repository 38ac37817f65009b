"""The command line that the commands of this package have in common."""

from __future__ import annotations

import argparse
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m module`: what is wrong is told in one line, with status 2."""
    return _Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
