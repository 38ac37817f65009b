"""Every published number of docs/results.md, by the run that makes it: configs/published_rows.json.

Each entry of that file is a `PublishedRow` with its `Figure`s, whose attributes name the keys; keys
whose value is empty, false or null are left out. `docs/results.md` has the same numbers, which a
test compares.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Beside the recipes, in a checkout as in an installation.
_FILE = Path(__file__).resolve().parents[2] / "configs" / "published_rows.json"
# What a config without a config string is, of those whose string chooses among published variants.
_DEFAULTS = {
    *("2024", "coco", "inductive", "scclip"),
    *("student=deeplabv2_r101", "teacher=vit_b16", "setting=annotation_free"),
}


@dataclass(frozen=True)
class Spread:
    """What others than the paper report of the same run; equal bounds are one number.

    Attributes:
      low, high: percent.
      source: who reports it, and which place in docs/specs quotes it.
    """

    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
      file: the file of the work directory that has our number, such as "metrics.json".
      metric: its key there, such as "mIoU".
      paper: percent, with the digits that are published.
      what: which of the run's numbers it is, such as "with CRF"; "" where the metric says it.
      random: training or noise has a part in it, so that another seed gives another number.
      spread: None where nobody reports one.
    """

    file: str
    metric: str
    paper: float
    what: str = ""
    random: bool = False
    spread: Spread | None = None


@dataclass(frozen=True)
class PublishedRow:
    """A run of a recipe, and the numbers that its paper publishes.

    Attributes:
      row: its name, also that of its work directory.
      config, choice: the recipe, `--config=CONFIG:CHOICE`; choice "": without a config string.
      overrides: values of the config by full name that differ from the recipe's.
      method, dataset: for readers, as in docs/results.md.
      files: full name of a config value -> the released file that it names.
      after: full name of a config value -> "ROW/FILE", what an earlier row leaves behind.
      source: of the numbers.
      figures: at least one.
    """

    row: str
    config: str
    method: str
    dataset: str
    files: Mapping[str, str]
    source: str
    figures: tuple[Figure, ...]
    choice: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def rows() -> tuple[PublishedRow, ...]:
    """All rows, each behind those that must run before it."""
    return tuple(map(_row, json.loads(_FILE.read_text("utf-8"))["rows"]))


def rows_of(config: str, choice: str) -> tuple[PublishedRow, ...]:
    """The rows of a recipe such as "voc_reclippp", in one of its variants.

    Args:
      choice: the config string; "" is the variant that the recipe is without one, and of several
        parts separated by commas neither the order counts nor those that are the default.
    """
    return tuple(
        row for row in rows() if row.config == config and _parts(row.choice) == _parts(choice)
    )


def _row(entry: dict[str, Any]) -> PublishedRow:
    return PublishedRow(**entry | {"figures": tuple(map(_figure, entry["figures"]))})


def _figure(entry: dict[str, Any]) -> Figure:
    spread = entry.get("spread")
    return Figure(**entry | {"spread": Spread(**spread) if spread else None})


def _parts(choice: str) -> set[str]:
    return {*filter(None, choice.split(","))} - _DEFAULTS
