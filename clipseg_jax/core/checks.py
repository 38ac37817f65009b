"""Checks of values that users give; each error names the argument, its value and what is taken."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> float:
    """`value` as a float, if it is a finite number from `low` to `high`.

    Args:
      name: of the argument.
      value: a number of Python or NumPy; no truth value.
      low: the least value, or, if `above`, what it must exceed.
      high: the largest value.
      above: `low` itself is not taken.

    Raises:
      ValueError: anything else.
    """
    if math.isinf(high):
        taken = "a number" if math.isinf(low) else f"a number {'above' if above else 'of at least'}"
        taken += "" if math.isinf(low) else f" {low:g}"
    else:
        taken = f"a number {'above' if above else 'from'} {low:g} to {high:g}"
    number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise _wrong(name, value, taken)
    if above and value == low:
        raise _wrong(name, value, taken)
    return float(value)


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int, if it is a whole number from `least` to `most`.

    Raises:
      ValueError: anything else, also truth values and floats.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))
    if not whole or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise _wrong(name, value, f"a whole number {span}")
    return int(value)


def check_sizes(name: str, value: Any, order: str = "(height, width)") -> tuple[int, int]:
    """`value` as two ints, if it is a pair of sizes of at least 1 pixel; `order` says of what.

    Raises:
      ValueError: anything else.
    """
    try:
        first, second = (check_whole(name, each) for each in value)
    except (TypeError, ValueError):
        raise _wrong(name, value, f"two whole numbers {order}, each at least 1 pixel") from None
    return first, second


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Checks that `value` is one of `choices`, which may be words or True and False.

    Raises:
      ValueError: anything else.
    """
    if not any(value == each and isinstance(value, type(each)) for each in choices):
        raise _wrong(name, value, " or ".join(repr(each) for each in choices))


def check_blocks(name: str, value: Any) -> None:
    """Checks that `value` lists different blocks of a network, at least one, counted from 0.

    Raises:
      ValueError: anything else.
    """
    blocks = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    whole = all(type(block) is int and block >= 0 for block in blocks)
    if not blocks or not whole or len(set(blocks)) < len(blocks):
        raise _wrong(name, value, "different whole numbers of at least 0, at least one")


def _wrong(name: str, value: Any, taken: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ValueError(f"{name} is {shown}; give {taken}")
