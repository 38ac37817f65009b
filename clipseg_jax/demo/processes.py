"""Painting in processes of its own, for the trainings that need many pictures."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from clipseg_jax.core.progress import progress_bar

T = TypeVar("T")


def paint_chunks(paint: Callable[[int], T], starts: Sequence[int], workers: int) -> Iterator[T]:
    """Yields `paint(start)` of each of `starts`, in order; shows progress.

    `paint` is a function of a module: processes are spawned, for forking is unsafe with JAX's
    threads.
    """
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        progress_bar(total=len(starts), unit="chunk", desc="paint") as bar,
    ):
        for chunk in pool.map(paint, starts):
            yield chunk
            bar.update()
