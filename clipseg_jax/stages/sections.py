"""A section of a config as the dataclass that the code takes."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from ml_collections import ConfigDict

Options = TypeVar("Options")


def options(kind: type[Options], section: ConfigDict, **values: Any) -> Options:
    """The dataclass `kind` with every field that `section` has, and `values`, which go first."""
    assert dataclasses.is_dataclass(kind)
    names = {field.name for field in dataclasses.fields(kind)} & set(section)
    return kind(**{**{name: section[name] for name in names}, **values})
