"""Batches for evaluation: files -> padded uint8 arrays of a few static shapes, by tf.data.

Pictures keep their original size; the network's resize happens on the device, from the sizes
given along. Nothing here is random but a corruption's noise: a function of (seed, index).
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
from input_pipeline.datasets.images import BadFile
from input_pipeline.datasets.layout import Example


@dataclass(frozen=True)
class Skipped:
    """An example that was left out (its position in the list and its name), and why."""

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
    """Every example once, in batches that all processes step through together.

    Reads the header of every picture now, the files while iterating.

    Args:
      batch_size: rows of a global batch; each process gets batch_size / process_count of them.
      network_size: (height, width) of a picture -> its (height, width) at the network; None: the
        same. A ValueError from it counts as a bad file.
      resize: the same, but done here, by Pillow's bicubic filter: what CLIP-ES does. Then the
        network's size is this one, and examples must have no labels.
      on_bad: what a file that can't be used does: stop with its error, or be left out, counted and
        named in `skipped`.
      corruption: (kind, level) of `corruptions.corrupt`, applied to the original picture.
      seed: of the corruption's noise; each picture's noise is the same for any batch or process.
      bucket_px, max_buckets, network_multiple: see `plan_batches`.

    Raises:
      ValueError: batch size, or process numbers that don't fit together.
      BadFile: `on_bad="raise"` and a bad file (unreadable headers here, the rest on iteration).
    """
    rows = process_rows(batch_size, process_index, process_count)
    if on_bad not in ("raise", "skip"):
        raise ValueError(f'on_bad is {on_bad!r}; it must be "raise" or "skip".')
    labelled = sum(example.label_path is not None for example in examples)
    if labelled not in (0, len(examples)):
        raise ValueError(
            f"{labelled} of {len(examples)} examples have a label; give labels for all or none."
        )
    if resize is not None and (network_size is not None or labelled):
        raise ValueError("resize goes with neither network_size nor labels.")

    sizes, bad = example_sizes(examples, resize or network_size)
    if bad and on_bad == "raise":
        raise bad[min(bad)]
    readable = [i for i in range(len(examples)) if i not in bad]
    if not readable:
        raise ValueError(
            f"{dataset.name}: none of the {len(examples)} pictures can be used"
            + (f", the first because: {bad[min(bad)]}" if bad else "; the split is empty.")
        )
    shown = {i: resize(*sizes[i]) if resize else sizes[i] for i in readable}
    plan = plan_batches(
        [shown[i] for i in readable],
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
        return (_bicubic(image, shown[index]) if resize else image), label

    network = {i: network_size(*sizes[i]) if network_size else shown[i] for i in readable}
    made = EvaluationBatches(
        plan=plan,
        names=[example.name for example in examples],
        sizes=shown,
        original_sizes=sizes,
        network_sizes=network,
        load=load,
        rows=rows,
        pad_label=dataset.ignore_label if labelled else None,
        on_bad=on_bad,
        # Every process sees these; one reports them, so that counts over processes add up.
        unreadable=bad if process_index == 0 else {},
    )
    return made if corruption is None else made.corrupted(*corruption, seed)


def _bicubic(image: np.ndarray, size: Size) -> np.ndarray:
    """Pillow's antialiased resize of uint8 (h, w, 3) to `size`."""
    if image.shape[:2] == size:
        return image
    made = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(made)


@dataclass
class EvaluationBatches:
    """Batches of one process, made by `evaluation`; may be iterated more than once.

    Iterating yields dicts for the process's b rows, padded at the bottom and right:
      image uint8 (b, H, W, 3); image_size, network_size and original_size (before any `resize`)
        int32 (b, 2), height and width;
      label int32 (b, H, W), padded with the ignored label (absent without label files);
      valid bool (b,), False for filler rows and bad files; index int32 (b,) into the examples;
      bucket_hw = (H, W) and network_hw, the padded size at the network: static, as tuples.

    Attributes:
      plan: the global batches that will be yielded, in order.
      skipped: what this process has left out so far, in the order of the batches. Added up over all
        processes each bad file occurs once.
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
        self._forget()

    def _forget(self) -> None:
        self.skipped = [Skipped(i, self.names[i], str(e)) for i, e in self.unreadable.items()]

    def corrupted(self, kind: str, level: int, seed: int) -> EvaluationBatches:
        """The same batches with every picture corrupted, instead of as here; reads no header.

        Raises:
          ValueError: an unknown kind or level.
        """
        # An unknown kind should fail now, not inside the pipeline.
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
        """Batches still to come when iteration starts; the same in every process."""
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Decodes in threads, ahead of the consumer, in a fixed order."""
        self._forget()
        rows_each = self.rows.stop - self.rows.start

        def load_row(number: int) -> tuple[tuple, Exception | None]:
            batch, row = divmod(number, rows_each)
            row += self.rows.start
            image, label, failure = self._padded_row(self.plan[batch], row)
            return (image, label, np.bool_(not failure and self.plan[batch].valid[row])), failure

        # All rows of a batch have its bucket's shape, so stacking them needs no padding here.
        kinds: list[ArraySpec] = [("uint8", (None, None, 3)), ("int32", (None, None)), ("bool", ())]
        made = stacked_rows(load_row, kinds, rows_each, stop=len(self.plan) * rows_each)
        for batch, ((image, label, valid), failures) in zip(self.plan, made, strict=True):
            indices = batch.indices[self.rows]
            for index, failure in zip(indices, failures, strict=True):
                self._report(index, failure)
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
        """One row at its bucket's size, or why there is none."""
        height, width = batch.bucket_hw
        image = np.zeros((height, width, 3), np.uint8)
        label_hw = (0, 0) if self.pad_label is None else batch.bucket_hw
        label = np.full(label_hw, self.pad_label or 0, np.int32)
        if not batch.valid[row]:
            return image, label, None
        try:
            pixels, ids = self.load(batch.indices[row])
        except Exception as failure:
            return image, label, failure
        image[: pixels.shape[0], : pixels.shape[1]] = pixels
        if ids is not None:
            label[: ids.shape[0], : ids.shape[1]] = ids
        return image, label, None

    def _report(self, index: int, failure: Exception | None) -> None:
        if failure is None:
            return
        if self.on_bad == "raise" or not isinstance(failure, BadFile):
            raise failure
        self.skipped.append(Skipped(index, self.names[index], str(failure)))
