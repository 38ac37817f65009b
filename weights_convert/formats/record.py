"""The one checker of the records in files of our own form: entries, their types and ranges.

A check is a function of a value and its place that raises `Unfit`. A checksum proves nothing about
who wrote a file, so records are checked as anything else of a stranger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clipseg_jax.core.safe_pickle import shown
from weights_convert.errors import CheckpointError

Check = Callable[[Any, str], None]


class Unfit(Exception):  # noqa: N818
    """A value that a check refuses."""


def check_record(record: Any, check: Check, source: object) -> None:
    """Checks a record.

    Raises:
      CheckpointError: names the file `source`, the entry, its value and what is expected.
    """
    try:
        check(record, "record")
    except Unfit as error:
        raise CheckpointError(f"{source}: its {error}; convert its source again") from error


def _unfit(at: str, value: Any, expected: str) -> Unfit:
    return Unfit(f"{at} is {shown(value)}, expected {expected}")


def check_arrays(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: object
) -> None:
    """Checks that a file holds the arrays that its record implies, no more and no less.

    Raises:
      CheckpointError: lists every missing (-), unexpected (+) and wrongly shaped (~) array.
    """
    problems = [f"- {name}: missing" for name in shapes if name not in arrays]
    for name, array in arrays.items():
        if name not in shapes:
            problems.append(f"+ {name} {array.shape}: unexpected")
        elif shapes[name] != array.shape:
            problems.append(f"~ {name}: shape {array.shape}, expected {shapes[name]}")
    if problems:
        problems.sort(key=lambda line: ("-+~".index(line[0]), line))
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"{source}: its arrays are not those of its record; convert its source again:\n"
            f"  {listed}"
        )


def whole(least: int, most: int) -> Check:
    """A whole number."""

    def check(value: Any, at: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _unfit(at, value, f"a whole number from {least} to {most}")

    return check


def number(least: float, most: float) -> Check:
    """A number."""

    def check(value: Any, at: str) -> None:
        if type(value) not in (int, float) or not least <= value <= most:
            raise _unfit(at, value, f"a number from {least} to {most}")

    return check


def text(longest: int = 1000) -> Check:
    """Text of one line."""

    def check(value: Any, at: str) -> None:
        if type(value) is not str or len(value) > longest or not value.isprintable():
            raise _unfit(at, value, f"printable text of at most {longest} letters")

    return check


def one_of(*values: Any) -> Check:
    """One of these values."""

    def check(value: Any, at: str) -> None:
        if not any(type(value) is type(each) and value == each for each in values):
            raise _unfit(at, value, f"one of {', '.join(map(str, values))}")

    return check


def maybe(check: Check) -> Check:
    """The same, or nothing (null)."""
    return lambda value, at: None if value is None else check(value, at)


def list_of(each: Check, least: int = 0, most: int = 100_000) -> Check:
    """A list of what `each` takes."""

    def check(value: Any, at: str) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            raise _unfit(at, value, f"a list of {least} to {most} entries")
        for i, inner in enumerate(value):
            each(inner, f"{at}[{i}]")

    return check


def mapping_of(each: Check, most: int = 10_000_000) -> Check:
    """Entries of any name that `each` takes."""

    def check(value: Any, at: str) -> None:
        if type(value) is not dict or len(value) > most:
            raise _unfit(at, value, f"at most {most} entries by name")
        for name, inner in value.items():
            each(inner, f"{at}.{shown(name)}")

    return check


def entries(
    required: Mapping[str, Check], optional: Mapping[str, Check], *, others: bool = False
) -> Check:
    """Entries by name; `others`: whether further ones, which nothing reads, are allowed."""

    def check(value: Any, at: str) -> None:
        if type(value) is not dict:
            raise _unfit(at, value, "entries by name")
        for name in required:
            if name not in value:
                raise Unfit(f"{at} lacks the entry {name!r}")
        for name, inner in value.items():
            known = required.get(name) or optional.get(name)
            if known is not None:
                known(inner, f"{at}.{name}")
            elif not others:
                raise Unfit(f"{at} has the unknown entry {shown(name)}")

    return check
