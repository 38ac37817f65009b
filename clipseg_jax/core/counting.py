"""Counts of a program's operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def multiply_adds(function: Callable[..., Any], *args: Any) -> float:
    """XLA's count for `function(*args)`, whose arguments may be shapes; nothing is run.

    XLA counts floating point operations, of which a multiply-add is two. The program is lowered for
    GPUs, where nothing is done in turn: of a loop, XLA would count one round.
    """
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))
    return float(lowered.cost_analysis()["flops"]) / 2
