"""What a dry run prints: the state of every row, and where what is missing is had."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from clipseg_jax.reproduce.plan import Missing
from input_pipeline.text_lists import escaped

_WIDTH = 100


def states(rows: Sequence[tuple[str, str, str]]) -> str:
    """The name of each row, its state, and why it cannot run; in lines of 100 columns."""
    width = max(len(name) for name, _, _ in rows)
    lines = []
    for name, state, reason in rows:
        start = f"{name:{width}} {state:7} "
        wrapped = textwrap.wrap(escaped(reason), _WIDTH - len(start)) or [""]
        lines.append(f"{start}{wrapped[0]}".rstrip())
        lines += [" " * len(start) + line for line in wrapped[1:]]
    return "\n".join(lines)


def shopping_list(needed: Mapping[Missing, int]) -> str:
    """Each thing that rows lack: where it is had, and what is done with it.

    Args:
      needed: thing -> how many rows lack it.
    """
    lines = []
    for each, count in needed.items():
        lines.append(f"{each.name}, for {count} row{'s' * (count > 1)}: {escaped(each.reason)}")
        lines += [f"  {size:>7}  {address}" for size, address in each.places]
        if each.how:
            lines += textwrap.wrap(each.how, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        if each.command:
            lines.append(f"  {escaped(each.command)}")
    return "\n".join(lines)
