"""Results of a stream, which come batched by size, in the order of the images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from input_pipeline.datasets.images import BadImage

T = TypeVar("T")


def in_order(stream: Iterable[tuple[int, T | BadImage]]) -> list[T]:
    """The results by their indices.

    Raises:
      BadImage: the first error of the stream.
    """
    results: dict[int, T] = {}
    for i, result in stream:
        if isinstance(result, BadImage):
            raise result
        results[i] = result
    return [results[i] for i in range(len(results))]
