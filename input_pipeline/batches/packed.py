"""A list that takes little memory, for processes that each have one and use few of its items."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Packed(Sequence[T]):
    """Items that are made each time they are taken; an example of a path is a tenth as large."""

    def __init__(self, items: Iterable[T]) -> None:
        pickled = [pickle.dumps(item) for item in items]
        self._ends = np.cumsum([len(each) for each in pickled], dtype=np.int64)
        self._bytes = b"".join(pickled)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        """The item at `index`, from 0; no slices."""
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]])
