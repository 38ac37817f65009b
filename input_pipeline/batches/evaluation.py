"""Batches for evaluation: files -> padded uint8 arrays of a few static shapes, by tf.data.

Images keep their original size; the device resizes them for the network, by the sizes in the batch.
Nothing is random except a corruption's noise, which is a function of (seed, index).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image

from input_pipeline.batches.buckets import PlannedBatch, Size, plan_batches, process_rows
from input_pipeline.batches.corruptions import corrupt
from input_pipeline.batches.loading import example_sizes, load_example
from input_pipeline.batches.tf_threads import ArraySpec, stacked_rows
from input_pipeline.batches.transforms import sample_rng
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.images import BadFile, shrunk_size
from input_pipeline.datasets.layout import Example


@dataclass(frozen=True)
class Skipped:
    """An example that was left out: its index among the examples, its name, and the reason."""

    index: int
    name: str
    reason: str


def evaluation_batches(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    batch_size: int,
    network_size: Callable[[int, int], Size] | None = None,
    resize: Callable[[int, int], Size] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    corruption: tuple[str, int] | None = None,
    seed: int = 0,
    bucket_px: int = 64,
    max_buckets: int = 8,
    network_multiple: int = 16,
) -> EvaluationBatches:
    """Batches that show every example once, the same number in every process.

    Reads the headers of all images when called, and the files during iteration.

    Args:
      batch_size: rows of a global batch; each process gets batch_size / process_count of them.
      network_size: (height, width) of an image -> its (height, width) at the network's input; None:
        unchanged. If it raises ValueError the file counts as bad.
      resize: (height, width) of an image -> the size to which it is resized here, by Pillow's
        bicubic filter, as CLIP-ES does. Excludes `network_size` and labels.
      on_bad: "raise" stops at a file that cannot be used; "skip" leaves it out and names it in
        `skipped`.
      corruption: (kind, level) of `corruptions.corrupt`, applied to the original image.
      seed: of the corruption's noise, which depends on nothing but this and the example's index.
      bucket_px, max_buckets, network_multiple: see `plan_batches`.

    Raises:
      ValueError: see `process_rows`; labels for some examples only; or no image can be used.
      BadFile: `on_bad="raise"` and a bad file (unreadable headers here, others during iteration).
    """
    rows = process_rows(batch_size, process_index, process_count)
    if on_bad not in ("raise", "skip"):
        raise ValueError(f'on_bad is {on_bad!r}; it must be "raise" or "skip".')
    labelled = sum(example.label_path is not None for example in examples)
    if labelled not in (0, len(examples)):
        raise ValueError(
            f"{labelled} of {len(examples)} examples have a label; give labels to all or none."
        )
    if resize is not None and (network_size is not None or labelled):
        raise ValueError("resize excludes network_size and labels; omit these.")

    longest_px = dataset.longest_px
    file_sizes, bad = example_sizes(examples, resize or network_size, longest_px)
    sizes = {i: shrunk_size(*size, longest_px) for i, size in file_sizes.items()}
    if bad and on_bad == "raise":
        raise bad[min(bad)]
    readable = [i for i in range(len(examples)) if i not in bad]
    if not readable:
        raise ValueError(
            f"{dataset.name}: none of the {len(examples)} images can be used"
            + (f"; the first error is: {bad[min(bad)]}" if bad else "; the split is empty.")
        )
    loaded_sizes = {i: resize(*sizes[i]) if resize else sizes[i] for i in readable}
    plan = plan_batches(
        [loaded_sizes[i] for i in readable],
        batch_size,
        network_size=network_size,
        bucket_px=bucket_px,
        max_buckets=max_buckets,
        network_multiple=network_multiple,
    )
    plan = [replace(batch, indices=tuple(readable[i] for i in batch.indices)) for batch in plan]

    def load(
        index: int, corruption: tuple[str, int] | None = None, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray | None]:
        image, label = load_example(dataset, examples[index], index, sizes[index], corruption, seed)
        return (_bicubic(image, loaded_sizes[index]) if resize else image), label

    batches = EvaluationBatches(
        plan=plan,
        names=[example.name for example in examples],
        sizes=loaded_sizes,
        original_sizes=file_sizes,
        network_sizes={
            i: network_size(*sizes[i]) if network_size else loaded_sizes[i] for i in readable
        },
        load=load,
        rows=rows,
        pad_label=dataset.ignore_label if labelled else None,
        on_bad=on_bad,
        # Every process finds these; one reports them, so that counts over processes add up.
        unreadable=bad if process_index == 0 else {},
    )
    return batches if corruption is None else batches.corrupted(*corruption, seed)


def _bicubic(image: np.ndarray, size: Size) -> np.ndarray:
    """Pillow's antialiased resize of uint8 (h, w, 3) to `size`."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized)


@dataclass
class EvaluationBatches:
    """Batches of one process, as `evaluation_batches` makes them; can be iterated repeatedly.

    Iteration yields a dict for the b rows of this process, padded at the bottom and right:
      image: uint8 (b, H, W, 3).
      image_size, network_size, original_size: int32 (b, 2), height and width; `original_size` is
        the file's, before `resize` and the dataset's `longest_px`.
      label: int32 (b, H, W), padded with the ignored label; absent without label files.
      valid: bool (b,), False for filler rows and bad files.
      index: int32 (b,), which examples these are.
      bucket_hw, network_hw: (H, W), and the padded size at the network's input: static tuples.

    Attributes:
      plan: the global batches that are yielded, in order.
      names: names of all examples.
      sizes, original_sizes, network_sizes: of each readable example by its index.
      load: (index) -> image and label of an example.
      rows: this process's rows of each global batch.
      pad_label: what labels are padded with; None: there are no labels.
      on_bad: see `evaluation_batches`.
      unreadable: examples of which this process reports that their headers cannot be read.
      skipped: what this process has left out so far, in the order of the batches; each bad file is
        reported by one process.
    """

    plan: list[PlannedBatch]
    names: list[str]
    sizes: dict[int, Size]
    original_sizes: dict[int, Size]
    network_sizes: dict[int, Size]
    load: Callable[..., tuple[np.ndarray, np.ndarray | None]]
    rows: slice
    pad_label: int | None
    on_bad: str
    unreadable: dict[int, BadFile]
    skipped: list[Skipped] = field(init=False)

    def __post_init__(self) -> None:
        self._reset_skipped()

    def _reset_skipped(self) -> None:
        self.skipped = [Skipped(i, self.names[i], str(e)) for i, e in self.unreadable.items()]

    def corrupted(self, kind: str, level: int, seed: int) -> EvaluationBatches:
        """The same batches of corrupted images; an earlier corruption is replaced.

        Raises:
          ValueError: an unknown kind or level.
        """
        # An unknown kind fails here, not in a thread.
        corrupt(np.zeros((8, 8, 3), np.uint8), kind, level, sample_rng(seed, 0, 0))
        return replace(self, load=partial(self.load, corruption=(kind, level), seed=seed))

    def starting_at(self, batch: int) -> EvaluationBatches:
        """The batches from a given one on, to resume; those before it are not decoded.

        Raises:
          ValueError: there are fewer batches.
        """
        if not 0 <= batch <= len(self.plan):
            raise ValueError(
                f"batch {batch} is not in 0..{len(self.plan)}; resume with the same examples, "
                f"batch_size and bucket settings."
            )
        return replace(self, plan=self.plan[batch:])

    def __len__(self) -> int:
        """Number of batches; the same in every process."""
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the batches in order; threads decode ahead of the consumer."""
        self._reset_skipped()
        rows_per_batch = self.rows.stop - self.rows.start

        def load_row(number: int) -> tuple[tuple, Exception | None]:
            batch, row = divmod(number, rows_per_batch)
            row += self.rows.start
            image, label, error = self._padded_row(self.plan[batch], row)
            return (image, label, np.bool_(not error and self.plan[batch].valid[row])), error

        # All rows of a batch have its bucket's shape, so stacking them needs no padding here.
        array_specs: list[ArraySpec] = [
            ("uint8", (None, None, 3)),
            ("int32", (None, None)),
            ("bool", ()),
        ]
        stream = stacked_rows(
            load_row, array_specs, rows_per_batch, stop=len(self.plan) * rows_per_batch
        )
        for batch, ((image, label, valid), errors) in zip(self.plan, stream, strict=True):
            indices = batch.indices[self.rows]
            for index, error in zip(indices, errors, strict=True):
                self._report(index, error)
            yield {
                "image": image,
                "image_size": np.array([self.sizes[i] for i in indices], np.int32),
                "network_size": np.array([self.network_sizes[i] for i in indices], np.int32),
                "original_size": np.array([self.original_sizes[i] for i in indices], np.int32),
                **({} if self.pad_label is None else {"label": label}),
                "valid": valid,
                "index": np.array(indices, np.int32),
                "bucket_hw": batch.bucket_hw,
                "network_hw": batch.network_hw,
            }

    def _padded_row(
        self, batch: PlannedBatch, row: int
    ) -> tuple[np.ndarray, np.ndarray, Exception | None]:
        """Image and label of a row at its bucket's size, and the error if it cannot be loaded."""
        height, width = batch.bucket_hw
        image = np.zeros((height, width, 3), np.uint8)
        label_hw = (0, 0) if self.pad_label is None else batch.bucket_hw
        label = np.full(label_hw, self.pad_label or 0, np.int32)
        if not batch.valid[row]:
            return image, label, None
        try:
            pixels, ids = self.load(batch.indices[row])
        except Exception as error:
            return image, label, error
        image[: pixels.shape[0], : pixels.shape[1]] = pixels
        if ids is not None:
            label[: ids.shape[0], : ids.shape[1]] = ids
        return image, label, None

    def _report(self, index: int, error: Exception | None) -> None:
        if error is None:
            return
        if self.on_bad == "raise" or not isinstance(error, BadFile):
            raise error
        self.skipped.append(Skipped(index, self.names[index], str(error)))
