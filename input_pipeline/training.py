"""Batches for training: random views of a split, endless, the same for any number of processes.

Every view is a function of (seed, epoch, example), and every batch of (seed, step): a run resumed
at a step computes the batch of that step, and skips nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from input_pipeline.datasets import Dataset
from input_pipeline.images import BadFile, BadLabel, read_image, read_label
from input_pipeline.layout import Example
from input_pipeline.pipeline import Skipped, tensorflow
from input_pipeline.transforms import pad, random_view, sample_rng

_PREFETCH = 4  # batches ready ahead of the device
_MOST_REPLACED = 32  # bad files in a row before something is wrong with all of them
UNLABELLED = -1


@dataclass(frozen=True)
class View:
    """One random view of an example, at the crop's size."""

    image: np.ndarray  # (*crop_hw, 3) uint8, zeros where the view is smaller
    image_size: tuple[int, int]  # its real rows and columns
    label: np.ndarray  # (*crop_hw) int32, padded with the ignored label


@dataclass
class TrainingBatches:
    """Batches of one process, made by `training`.

    Attributes:
      steps_per_epoch: the last batch of an epoch is filled up from the epoch's own start (the
        published codes keep it short, which would be another shape).
      skipped: the bad files that this process has met; the next good example took their place.
    """

    dataset: Dataset
    examples: Sequence[Example]
    batch_size: int
    rows: slice  # of each global batch, this process's
    crop_hw: tuple[int, int]
    scale: tuple[int, int]
    saturation_wrap: bool
    unlabeled: bool
    reshuffle: bool
    seed: int
    on_bad: Literal["raise", "skip"]
    threads: int
    skipped: list[Skipped] = field(default_factory=list)
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show each example once."""
        return -(-len(self.examples) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The examples' order (n,) in an epoch."""
        epoch = epoch if self.reshuffle else 0
        if epoch not in self._orders:
            # A key of its own: (seed, epoch) must not meet the views' (seed, epoch, example).
            bits = np.random.Philox(key=np.array([self.seed, 2**32 + epoch], np.uint64))
            order = np.random.Generator(bits).permutation(len(self.examples))
            kept = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders = {**kept, epoch: order}  # in one step, for threads share it
            return order
        return self._orders[epoch]

    def indices(self, step: int) -> np.ndarray:
        """The examples (batch_size,) of a global batch."""
        epoch, number = divmod(step, self.steps_per_epoch)
        places = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        return self.order(epoch)[places % len(self.examples)]

    def view(self, index: int, epoch: int) -> View:
        """An example as it is seen in an epoch.

        Raises:
          BadFile: its files can't be used.
        """
        example, ignored = self.examples[index], self.dataset.ignore_label
        image = read_image(example.image_path)
        if example.label_path is None:  # every crop is as good as another
            label = np.full(image.shape[:2], ignored, np.int32)
        else:
            label = read_label(
                example.label_path,
                self.dataset.num_classes,
                reduce_zero_label=self.dataset.reduce_zero_label,
                ignore_label=ignored,
            )
        if label.shape != image.shape[:2]:
            raise BadLabel(
                f"{example.label_path}: {label.shape[0]} x {label.shape[1]} pixels, but its "
                f"picture {example.image_path} has {image.shape[0]} x {image.shape[1]}; labels "
                "must match their picture."
            )
        if self.unlabeled:
            # Without a label file every pixel waits for a label.
            known = np.zeros_like(label, bool) if example.label_path is None else label == ignored
            label = np.where(known, ignored, UNLABELLED).astype(np.int32)
        image, label = random_view(
            image,
            label,
            sample_rng(self.seed, epoch, index),
            scale=self.scale,
            crop_hw=self.crop_hw,
            cat_max_ratio=1.0 if example.label_path is None else 0.75,
            ignore_label=ignored,
            saturation_wrap=self.saturation_wrap,
        )
        size = (image.shape[0], image.shape[1])
        image, label = pad(image, label, self.crop_hw, ignore_label=ignored)
        return View(image, size, label.astype(np.int32))

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of each batch from a step on, without end.

        Each is a dict: image uint8 (b, *crop_hw, 3), image_size int32 (b, 2), label int32
        (b, *crop_hw), index int32 (b,) into the examples. Decoded in threads, ahead, in order.

        Raises:
          BadFile: `on_bad="raise"` and a bad file, or very many of them one after another.
        """
        tf = tensorflow()
        each = self.rows.stop - self.rows.start
        failures: dict[int, Exception] = {}
        left_out: dict[int, list[Skipped]] = {}
        first = start_step * each

        def load(number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.int32]:
            place = first + int(number)
            step, row = divmod(place, each)
            try:
                index, view, skipped = self._good(step, self.rows.start + row)
            except Exception as failure:  # handed on: TensorFlow would garble it
                failures[place] = failure
                blank = np.zeros((*self.crop_hw, 3), np.uint8)
                return blank, np.zeros(2, np.int32), blank[..., 0].astype(np.int32), np.int32(0)
            if skipped:
                left_out[place] = skipped
            return view.image, np.asarray(view.image_size, np.int32), view.label, np.int32(index)

        def load_row(number: object) -> tuple:
            kinds = [tf.uint8, tf.int32, tf.int32, tf.int32]
            made = tf.numpy_function(load, [number], kinds)
            shapes = ((*self.crop_hw, 3), (2,), self.crop_hw, ())
            for tensor, shape in zip(made, shapes, strict=True):
                tensor.set_shape(shape)
            return tuple(made)

        rows = tf.data.Dataset.range(np.iinfo(np.int64).max)
        rows = rows.map(load_row, num_parallel_calls=self.threads, deterministic=True)
        stream = rows.batch(each, drop_remainder=True).prefetch(_PREFETCH).as_numpy_iterator()
        step = start_step
        for image, size, label, index in stream:
            for place in range(step * each, (step + 1) * each):
                if place in failures:
                    raise failures.pop(place)
                self._report(left_out.pop(place, []))
            yield {"image": image, "image_size": size, "label": label, "index": index}
            step += 1

    def _good(self, step: int, row: int) -> tuple[int, View, list[Skipped]]:
        """The example of a global batch's row, or the next of the epoch that can be used."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order, skipped = self.order(epoch), []
        place = number * self.batch_size + row
        for _ in range(min(_MOST_REPLACED, len(order))):
            index = int(order[place % len(order)])
            try:
                return index, self.view(index, epoch), skipped
            except BadFile as error:
                if self.on_bad == "raise":
                    raise
                skipped.append(Skipped(index, self.examples[index].name, str(error)))
                last = error
            place += 1
        raise BadFile(
            f"{len(skipped)} examples one after another can't be used, the last because: {last}"
        )

    def _report(self, skipped: list[Skipped]) -> None:
        known = {one.index for one in self.skipped}
        self.skipped += [one for one in skipped if one.index not in known]


def training(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    batch_size: int,
    scale: tuple[int, int],
    crop_hw: tuple[int, int],
    saturation_wrap: bool = False,
    unlabeled: bool = False,
    reshuffle: bool = True,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
) -> TrainingBatches:
    """Random views of `examples`; see `transforms.random_view` for what a view is.

    Args:
      batch_size: rows of a global batch; each process gets batch_size / process_count of them.
      unlabeled: classes become -1, to be labelled by a teacher; what is ignored stays so.
      reshuffle: a new order each epoch; otherwise the first epoch's.
      on_bad: what a file that can't be used does: stop, or be left out, named in `skipped`.
      threads: that decode; None: one for each core.

    Raises:
      ValueError: no examples, or a batch size or process numbers that don't fit together.
    """
    if not examples:
        raise ValueError(f"{dataset.name}: no training examples.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index} of {process_count} processes.")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is not divisible by {process_count} processes; set it to "
            f"{max(-(-batch_size // process_count), 1) * process_count}."
        )
    each = batch_size // process_count
    return TrainingBatches(
        dataset=dataset,
        examples=examples,
        batch_size=batch_size,
        rows=slice(process_index * each, (process_index + 1) * each),
        crop_hw=crop_hw,
        scale=scale,
        saturation_wrap=saturation_wrap,
        unlabeled=unlabeled,
        reshuffle=reshuffle,
        seed=seed,
        on_bad=on_bad,
        threads=threads or os.cpu_count() or 1,
    )
