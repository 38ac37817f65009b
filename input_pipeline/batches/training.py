"""Batches for training: random views of a split's pictures, by tf.data, endless.

Every view is a function of (seed, epoch, example) and every batch of (seed, step), whatever the
number of processes and threads: going on at a step computes that step's batch and skips nothing.
Pictures stay in grey levels, and are normalised on the device.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from input_pipeline.batches.buckets import process_rows
from input_pipeline.batches.evaluation import Skipped
from input_pipeline.batches.loading import read_example
from input_pipeline.batches.tf_threads import ArraySpec, stacked_rows
from input_pipeline.batches.transforms import pad, random_view, sample_rng, suppress
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.images import BadFile
from input_pipeline.datasets.layout import Example

UNLABELLED = -1

_MOST_IN_A_ROW = 32  # bad files, before something must be wrong with all of them


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
    unlabeled: bool | Collection[int] = False,
    reshuffle: bool = True,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
) -> TrainingBatches:
    """Batches of random views of `examples`. Reads no file yet.

    Args:
      batch_size: rows of a global batch; each process gets batch_size / process_count of them.
      scale, crop_hw, ratio_range, cat_max_ratio, saturation_wrap: see `transforms.random_view`.
      unlabeled: every class in the labels, or those given, becomes -1, to be named by a teacher;
        what is ignored stays so.
      reshuffle: a new order in each epoch; otherwise the first epoch's again (its views differ).
      on_bad: what a file that can't be used does: stop with its error, or give its place to the
        next example of the epoch, named in `skipped`.
      threads: how many decode; None: one for each core.

    Raises:
      ValueError: no examples, a negative seed, an unlabeled class that the dataset doesn't have, or
        a batch size and process numbers that don't fit together.
    """
    classes = tuple(range(dataset.num_classes))
    hidden = classes * unlabeled if isinstance(unlabeled, bool) else tuple(unlabeled)
    if not set(hidden) <= set(classes):
        raise ValueError(f"{dataset.name}: unlabeled is {hidden}; give some of 0 to {classes[-1]}.")
    view = functools.partial(
        random_view,
        scale=tuple(scale),
        crop_hw=(crop_hw[0], crop_hw[1]),
        ratio_range=(ratio_range[0], ratio_range[1]),
        cat_max_ratio=cat_max_ratio,
        ignore_label=dataset.ignore_label,
        saturation_wrap=saturation_wrap,
    )
    return batches_of(
        dataset,
        examples,
        view=view,
        # Nothing to choose the crop by: the first is as good as any.
        blind_view=functools.partial(view, cat_max_ratio=1.0),
        crop_hw=crop_hw,
        kind="uint8",
        hidden=hidden,
        batch_size=batch_size,
        reshuffle=reshuffle,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        on_bad=on_bad,
        threads=threads,
    )


def batches_of(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    batch_size: int,
    crop_hw: tuple[int, int],
    reshuffle: bool = True,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
    **views: Any,
) -> TrainingBatches:
    """What `training` and its kin have in common; `views`: further fields of TrainingBatches."""
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
        crop_hw=(crop_hw[0], crop_hw[1]),
        reshuffle=reshuffle,
        seed=seed,
        on_bad=on_bad,
        threads=threads,
        **views,
    )


View = Callable[[np.ndarray, np.ndarray, np.random.RandomState], tuple[np.ndarray, np.ndarray]]


@dataclass
class TrainingBatches:
    """Batches of one process, made by `training` and its kin.

    An epoch's last batch is filled up from the epoch's own start, with the same views; the
    published codes keep it short, which would be another shape.

    Attributes:
      hidden: classes that become -1 in the labels.
      view, blind_view: (image, label, generator) -> a view of at most `crop_hw`, of an example with
        labels and of one without; kind: the dtype of its image.
      skipped: the bad files that this process has met so far, each once.
    """

    dataset: Dataset
    examples: Sequence[Example]
    batch_size: int
    rows: slice
    view: View
    blind_view: View
    crop_hw: tuple[int, int]
    kind: Literal["uint8", "float32"]
    hidden: tuple[int, ...]
    reshuffle: bool
    seed: int
    on_bad: str
    threads: int | None
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show each example at least once."""
        return -(-len(self.examples) // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """The examples (batch_size,) of a step's global batch, if none of them is bad."""
        _, places, order = self._epoch(step)
        return order[places % len(order)]

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This process's b rows of each step's batch, from a step on, without end.

        Yields:
          image uint8, or float32 at scales, (b, *crop_hw, 3), 0 at the bottom and right where the
          view is smaller than the crop; image_size int32 (b, 2), the view's rows and columns; label
          int32 (b, *crop_hw), padded with the ignored label, and ignored (or -1) throughout without
          a label file; index int32 (b,), which examples these are: another than in `indices` for a
          bad one.

        Raises:
          BadFile: a bad file and `on_bad="raise"`, or too many of them one after another.
        """
        each = self.rows.stop - self.rows.start
        kinds: list[ArraySpec] = [
            (self.kind, (*self.crop_hw, 3)),
            ("int32", (2,)),
            ("int32", self.crop_hw),
            ("int32", ()),
        ]

        def make(number: int) -> tuple[tuple, list[Skipped] | Exception]:
            step, row = divmod(number, each)
            try:
                return self._row(step, self.rows.start + row)
            except Exception as failure:
                return tuple(np.zeros(shape, kind) for kind, shape in kinds), failure

        stream = stacked_rows(make, kinds, each, start=start_step * each, threads=self.threads)
        for (image, size, label, index), notes in stream:
            for note in notes:
                if isinstance(note, Exception):
                    raise note
                self._report(note)
            yield {"image": image, "image_size": size, "label": label, "index": index}

    def _epoch(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The epoch of a step, the places (batch_size,) of its rows in it, the epoch's order (n,).

        Places run over the end of the order in the last step.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        places = np.arange(self.batch_size) + step_of_epoch * self.batch_size
        return epoch, places, _order(self.seed, epoch * self.reshuffle, len(self.examples))

    def _row(self, step: int, row: int) -> tuple[tuple, list[Skipped]]:
        """A row's arrays, of its own example or else of the next in the epoch that can be used."""
        epoch, places, order = self._epoch(step)
        skipped: list[Skipped] = []
        for place in range(places[row], places[row] + min(_MOST_IN_A_ROW, len(order))):
            index = int(order[place % len(order)])
            try:
                return (*self._view(index, epoch), index), skipped
            except BadFile as error:
                if self.on_bad == "raise":
                    raise
                skipped.append(Skipped(index, self.examples[index].name, str(error)))
        raise BadFile(
            f"{self.dataset.name}: {len(skipped)} examples one after another can't be used, the "
            f"first because: {skipped[0].reason}"
        )

    def _view(self, index: int, epoch: int) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
        """An example as the epoch shows it: padded image, real size, padded label."""
        image, label = read_example(self.dataset, self.examples[index])
        ignored = self.dataset.ignore_label
        view = self.blind_view if label is None else self.view
        if label is None:
            label = np.full(image.shape[:2], UNLABELLED if self.hidden else ignored, np.int32)
        elif self.hidden:
            label = suppress(label, self.hidden)
        label = label.astype(np.int16)  # half the work of int32
        image, label = view(image, label, sample_rng(self.seed, epoch, index))
        size = image.shape[0], image.shape[1]
        image, label = pad(image, label, self.crop_hw, ignore_label=ignored)
        return image, size, label

    def _report(self, skipped: Sequence[Skipped]) -> None:
        known = {one.index for one in self.skipped}
        for one in skipped:
            if one.index not in known:
                self.skipped.append(one)
                logging.getLogger(__name__).warning("left out %s: %s", one.name, one.reason)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count`; Philox's second key is 0 in `sample_rng`, and never here."""
    bits = np.random.Philox(key=[seed, epoch + 1])
    order = np.random.RandomState(bits).permutation(count)
    order.flags.writeable = False
    return order
