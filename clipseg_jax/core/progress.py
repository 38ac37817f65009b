"""Progress of long work: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

import jax
from tqdm import tqdm

Item = TypeVar("Item")

_LINE_S = 60.0  # between lines where nobody watches
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s, {elapsed} passed, {remaining} left{postfix}"


def progress_bar(
    items: Iterable[Item] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str,
    desc: str,
    every_s: float = _LINE_S,
) -> tqdm:
    """A bar of tqdm in process 0; where stderr is no terminal it writes a line each `every_s`."""
    lines: dict[str, Any] = {}
    if not sys.stderr.isatty():
        lines = {
            "file": Lines(),
            "mininterval": every_s,
            "maxinterval": every_s,
            "bar_format": _LINE,
        }
    return tqdm(
        items, desc, total, initial=initial, unit=unit, disable=jax.process_index() != 0, **lines
    )


class Lines:
    """stderr, with whole lines in place of tqdm's returns to the start of one."""

    def __init__(self) -> None:
        self._stream: TextIO = sys.stderr

    def write(self, text: str) -> int:
        """Writes what is no blank, as a line; returns the length of `text`."""
        if line := text.strip():
            self._stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        """Flushes stderr."""
        self._stream.flush()
