"""Batches for training: random views of a split's images, by threads or processes, endless.

Every view is a function of (seed, epoch, example) and every batch of (seed, step), whatever the
number of processes and threads, so that a run can resume at any step without reading earlier ones.
Images keep their pixel values 0..255; the device normalizes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from input_pipeline.batches.buckets import process_rows
from input_pipeline.batches.evaluation import Skipped
from input_pipeline.batches.loading import read_example
from input_pipeline.batches.packed import Packed
from input_pipeline.batches.row_memory import ArraySpec
from input_pipeline.batches.row_processes import rows_by_processes
from input_pipeline.batches.tf_threads import stacked_rows
from input_pipeline.batches.transforms import (
    check_ratios,
    pad,
    random_view,
    sample_rng,
    suppress,
)
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.images import BadFile
from input_pipeline.datasets.layout import Example

# (image, label, generator) -> image and label of a view
View = Callable[[np.ndarray, np.ndarray, np.random.RandomState], tuple[np.ndarray, np.ndarray]]

UNLABELLED = -1

_MAX_BAD_IN_A_ROW = 32  # after so many bad files the whole dataset is assumed to be bad


def random_view_batches(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    batch_size: int,
    scale: tuple[int, int],
    crop_hw: tuple[int, int],
    ratio_range: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    saturation_wrap: bool = False,
    unlabelled: bool | Collection[int] = False,
    reshuffle: bool = True,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
) -> TrainingBatches:
    """Endless batches of random views of `examples`; files are read during iteration.

    Args:
      batch_size: rows of a global batch; each process gets batch_size / process_count of them.
      scale, crop_hw, ratio_range, cat_max_ratio, saturation_wrap: see `transforms.random_view`.
      unlabelled: True: all classes in the labels become -1, for a teacher to label; or a collection
        of the classes that do. Ignored pixels stay ignored.
      reshuffle: a new order in each epoch; False: the first epoch's order (views still differ).
      seed: of orders and views.
      on_bad: "raise" stops at a file that cannot be used; "skip" replaces it by the next example of
        the epoch and names it in `skipped`.
      threads: how many threads decode; None: one per core.

    Raises:
      ValueError: no examples, a negative seed, an unlabelled class that the dataset does not have,
        ratios that do not ascend from above 0, or see `process_rows`.
    """
    classes = tuple(range(dataset.num_classes))
    hidden = classes * unlabelled if isinstance(unlabelled, bool) else tuple(unlabelled)
    if not set(hidden) <= set(classes):
        raise ValueError(f"{dataset.name}: unlabelled {hidden} is not in 0..{classes[-1]}.")
    view = functools.partial(
        random_view,
        scale=tuple(scale),
        crop_hw=(crop_hw[0], crop_hw[1]),
        ratio_range=check_ratios(ratio_range),
        cat_max_ratio=cat_max_ratio,
        ignore_label=dataset.ignore_label,
        saturation_wrap=saturation_wrap,
    )
    return make_training_batches(
        dataset,
        examples,
        view=view,
        # Without labels there is nothing to choose a crop by: take the first.
        unlabelled_view=functools.partial(view, cat_max_ratio=1.0),
        crop_hw=crop_hw,
        dtype="uint8",
        hidden=hidden,
        batch_size=batch_size,
        reshuffle=reshuffle,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        on_bad=on_bad,
        threads=threads,
    )


def make_training_batches(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    view: View,
    unlabelled_view: View,
    dtype: Literal["uint8", "float32"],
    hidden: tuple[int, ...],
    batch_size: int,
    crop_hw: tuple[int, int],
    reshuffle: bool = True,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
) -> TrainingBatches:
    """Checks the arguments of `TrainingBatches`; for functions like `random_view_batches`.

    Raises:
      ValueError: see `random_view_batches`.
    """
    rows = process_rows(batch_size, process_index, process_count)
    if not examples:
        raise ValueError(f"{dataset.name}: there are no examples to train on.")
    if on_bad not in ("raise", "skip"):
        raise ValueError(f'on_bad is {on_bad!r}; it must be "raise" or "skip".')
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative.")
    return TrainingBatches(
        dataset=dataset,
        examples=examples,
        batch_size=batch_size,
        rows=rows,
        view=view,
        unlabelled_view=unlabelled_view,
        crop_hw=(crop_hw[0], crop_hw[1]),
        dtype=dtype,
        hidden=hidden,
        reshuffle=reshuffle,
        seed=seed,
        on_bad=on_bad,
        threads=threads,
    )


@dataclass
class TrainingBatches:
    """Batches of one process, as `random_view_batches` and similar functions make them.

    An epoch's last batch is filled up from the start of the epoch, with the same views; published
    codes keep it short, which would be a second shape.

    Attributes:
      rows: this process's rows of each global batch.
      view, unlabelled_view: make a view of at most `crop_hw`, of an example with a label map and of
        one without.
      dtype: of the views' images.
      hidden: classes that become -1 in the labels.
      skipped: the bad files that this process has met so far, each once.
    """

    dataset: Dataset
    examples: Sequence[Example]
    batch_size: int
    rows: slice
    view: View
    unlabelled_view: View
    crop_hw: tuple[int, int]
    dtype: Literal["uint8", "float32"]
    hidden: tuple[int, ...]
    reshuffle: bool
    seed: int
    on_bad: str
    threads: int | None
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that show each example at least once."""
        return -(-len(self.examples) // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """Example indices (batch_size,) of a step's global batch, if none of them is bad."""
        _, positions, order = self._epoch(step)
        return order[positions % len(order)]

    def batches(
        self, start_step: int = 0, *, processes: int = 0
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """This process's b rows of each step's batch, from a step on, without end.

        Args:
          processes: how many worker processes make the rows (see `row_processes`); 0: threads of
            this process do. The rows are the same.

        Yields:
          A dict. image: `dtype` (b, *crop_hw, 3), 0 at the bottom and right where the view is
          smaller than the crop. image_size: int32 (b, 2), height and width of the view. label:
          int32 (b, *crop_hw), padded with the ignored label; without a label file all ignored, or
          all -1 where classes are hidden. index: int32 (b,), which examples these are; differs from
          `indices` where an example is bad.

        Raises:
          BadFile: a bad file and `on_bad="raise"`, or too many of them in a row.
          ChildProcessError: a worker process was killed.
        """
        rows_per_batch = self.rows.stop - self.rows.start
        first = start_step * rows_per_batch
        specs = self._array_specs
        if processes:
            sent = dataclasses.replace(self, examples=Packed(self.examples), skipped=[])
            stream = rows_by_processes(
                sent._numbered_row, specs, rows_per_batch, start=first, processes=processes
            )
        else:
            stream = stacked_rows(
                self._numbered_row, specs, rows_per_batch, start=first, threads=self.threads
            )
        with contextlib.closing(stream):
            for (image, size, label, index), notes in stream:
                for note in notes:
                    if isinstance(note, Exception):
                        raise note
                    self._report(note)
                yield {"image": image, "image_size": size, "label": label, "index": index}

    @property
    def _array_specs(self) -> list[ArraySpec]:
        return [
            (self.dtype, (*self.crop_hw, 3)),
            ("int32", (2,)),
            ("int32", self.crop_hw),
            ("int32", ()),
        ]

    def _numbered_row(self, number: int) -> tuple[tuple, list[Skipped] | Exception]:
        """The row of this number, from step 0 on; an error in place of what it left out."""
        step, row = divmod(number, self.rows.stop - self.rows.start)
        try:
            return self._row(step, self.rows.start + row)
        except Exception as error:
            return tuple(np.zeros(shape, dtype) for dtype, shape in self._array_specs), error

    def _epoch(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """A step's epoch, the positions (batch_size,) of its rows in the epoch, its order (n,).

        In the last step of an epoch positions exceed the length of the order.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        positions = np.arange(self.batch_size) + step_of_epoch * self.batch_size
        return epoch, positions, _order(self.seed, epoch * self.reshuffle, len(self.examples))

    def _row(self, step: int, row: int) -> tuple[tuple, list[Skipped]]:
        """A row's arrays: of its own example, or of the next in the epoch that can be used."""
        epoch, positions, order = self._epoch(step)
        skipped: list[Skipped] = []
        attempts = min(_MAX_BAD_IN_A_ROW, len(order))
        for position in range(positions[row], positions[row] + attempts):
            index = int(order[position % len(order)])
            try:
                return (*self._view(index, epoch), index), skipped
            except BadFile as error:
                if self.on_bad == "raise":
                    raise
                skipped.append(Skipped(index, self.examples[index].name, str(error)))
        raise BadFile(
            f"{self.dataset.name}: {len(skipped)} examples in a row cannot be used; the first "
            f"error is: {skipped[0].reason}"
        )

    def _view(self, index: int, epoch: int) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
        """An example's view in an epoch: padded image, size of the view, padded label."""
        image, label = read_example(self.dataset, self.examples[index])
        ignored = self.dataset.ignore_label
        view = self.unlabelled_view if label is None else self.view
        if label is None:
            label = np.full(image.shape[:2], UNLABELLED if self.hidden else ignored, np.int16)
        else:
            label = suppress(label, self.hidden)  # int16: half the work of int32
        image, label = view(image, label, sample_rng(self.seed, epoch, index))
        size = image.shape[0], image.shape[1]
        image, label = pad(image, label, self.crop_hw, ignore_label=ignored)
        return image, size, label

    def _report(self, skipped: Sequence[Skipped]) -> None:
        reported = {example.index for example in self.skipped}
        for example in skipped:
            if example.index not in reported:
                self.skipped.append(example)
                logging.getLogger(__name__).warning("left out %s: %s", example.name, example.reason)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count`. Philox's second key word is 0 in `sample_rng` and never here."""
    bits = np.random.Philox(key=[seed, epoch + 1])
    order = np.random.RandomState(bits).permutation(count)
    order.flags.writeable = False
    return order
