"""The logs of a training as series of numbers that can be drawn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipseg_jax.core.json_lines import parse_line
from input_pipeline.walk import open_regular

_MOST_POINTS = 1000


@dataclass(frozen=True)
class Series:
    """Numbers by step, ascending; NaN where the log has null."""

    steps: np.ndarray  # (n,)
    values: np.ndarray  # (n,) float64

    def thinned(self) -> Series:
        """At most 1,000 points: of as many equal parts as needed, the lowest and the highest."""
        count = len(self.steps)
        if count <= _MOST_POINTS:
            return self
        kept = {0, count - 1}
        for part in np.array_split(np.arange(count), _MOST_POINTS // 2 - 1):
            if not np.isnan(self.values[part]).all():
                kept.add(int(part[np.nanargmin(self.values[part])]))
                kept.add(int(part[np.nanargmax(self.values[part])]))
        chosen = sorted(kept)
        return Series(self.steps[chosen], self.values[chosen])


@dataclass
class Log:
    """A .jsonl file of numbers by step."""

    series: dict[str, Series] = field(default_factory=dict)
    damaged: int = 0  # lines that are left out


def read_log(path: Path) -> Log:
    """The numbers in a log of `core.writer.Writer`; of a step that is there twice, the later.

    Raises:
      OSError: the file cannot be read.
    """
    damaged, found = 0, defaultdict[str, dict[int, float]](dict)
    with open_regular(path) as file:
        for line in file:
            if not line.strip():
                continue
            record = parse_line(line, {"step": int})
            if record is None:
                damaged += 1
                continue
            for name, value in record.items():
                if name != "step" and (value is None or type(value) in (int, float)):
                    found[name][record["step"]] = float("nan") if value is None else float(value)
    return Log({name: _series(numbers) for name, numbers in found.items()}, damaged)


def _series(numbers: dict[int, float]) -> Series:
    steps = sorted(numbers)
    return Series(np.asarray(steps), np.asarray([numbers[step] for step in steps], np.float64))
