"""Training batches from image labels: views in random places, and the classes of each picture.

WeCLIP's data (spec weclip, section 8.3). Which classes a picture shows is known of the whole
picture: its view may not show them all. Rows of a batch are padded to a number of classes that
follows from the step, so that programs are compiled for few numbers and little is computed in vain.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.datasets import Dataset
from input_pipeline.layout import Example
from input_pipeline.training import TrainingBatches, batches_of

BOUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)


def placed_view(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.RandomState,
    *,
    ratio_range: tuple[float, float],
    crop_hw: tuple[int, int],
    ignore_label: int = 255,
) -> tuple[np.ndarray, np.ndarray]:
    """What WeCLIP's training sees of a picture: uint8 (*crop_hw, 3), and its label.

    Resize by a random ratio (Pillow's bilinear filter, which is antialiased), flip, crop. A side
    that is shorter than the crop lies somewhere in it, on black, which the network will not tell
    from a black picture: padding comes before normalisation. Six draws: the ratio, the flip, the
    place's top and left, the box's top and left.
    """
    ratio = rng.uniform(*ratio_range)
    height, width = (max(int(side * ratio), 1) for side in label.shape)
    made = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    picture = Image.fromarray(np.asarray(label, np.int32))
    ids = picture.resize((width, height), Image.Resampling.NEAREST)
    turn = np.s_[:, ::-1] if rng.random_sample() > 0.5 else np.s_[:, :]
    resized, labels = np.asarray(made)[turn], np.asarray(ids, label.dtype)[turn]

    rooms = [crop - side for crop, side in zip(crop_hw, (height, width), strict=True)]
    places = [int(rng.randint(max(room, 0) + 1)) for room in rooms]
    starts = [int(rng.randint(max(-room, 0) + 1)) for room in rooms]
    lengths = [min(crop, side) for crop, side in zip(crop_hw, (height, width), strict=True)]
    to, of = (
        tuple(slice(first, first + n) for first, n in zip(begin, lengths, strict=True))
        for begin in (places, starts)
    )
    view = np.zeros((*crop_hw, 3), np.uint8)
    seen = np.full(crop_hw, ignore_label, label.dtype)
    view[to], seen[to] = resized[of], labels[of]
    return view, seen


def training_with_classes(
    dataset: Dataset,
    examples: Sequence[Example],
    classes: Sequence[tuple[int, ...]],
    *,
    crop_hw: tuple[int, int],
    ratio_range: tuple[float, float] = (0.5, 2.0),
    bounds: Sequence[int] = BOUNDS,
    **options: Any,
) -> ClassBatches:
    """Endless batches of placed views with the classes of their pictures. Reads no file yet.

    Args:
      classes: ids of each example's classes; () for a picture without any.
      crop_hw, ratio_range: see `placed_view`.
      bounds: numbers of classes that rows may be padded to, ascending.
      options: `batch_size`, and those after `unlabeled` in `training.training`.

    Raises:
      ValueError: as `training.training`; or a picture with more classes than any bound.
    """
    if len(classes) != len(examples):
        raise ValueError(f"{len(classes)} lists of classes for {len(examples)} examples")
    most = max(map(len, classes), default=0)
    if not bounds or list(bounds) != sorted(set(bounds)) or bounds[0] < 1 or most > bounds[-1]:
        name = examples[int(np.argmax([len(ids) for ids in classes]))].name
        raise ValueError(
            f"rows are to be padded to {tuple(bounds)} classes, and {name} shows {most}; give "
            "numbers that ascend from at least 1 to at least that many"
        )
    view = functools.partial(
        placed_view,
        ratio_range=(ratio_range[0], ratio_range[1]),
        crop_hw=(crop_hw[0], crop_hw[1]),
        ignore_label=dataset.ignore_label,
    )
    views = batches_of(
        dataset,
        examples,
        view=view,
        blind_view=view,
        crop_hw=crop_hw,
        kind="uint8",
        unlabeled=True,
        **options,
    )
    made = ClassBatches(views, classes, tuple(bounds))
    views.fits = lambda step, index: len(classes[index]) <= made.bound(step)
    return made


@dataclass
class ClassBatches:
    """Batches of one process, made by `training_with_classes`.

    Attributes:
      views: the pictures' part.
    """

    views: TrainingBatches
    classes: Sequence[tuple[int, ...]]
    bounds: tuple[int, ...]

    @property
    def examples(self) -> Sequence[Example]:
        """What is trained on."""
        return self.views.examples

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""
        return self.views.batch_size

    def bound(self, step: int) -> int:
        """How many classes each row of a step's global batch has room for, in every process."""
        most = max(len(self.classes[i]) for i in self.views.indices(step))
        return next(bound for bound in self.bounds if bound >= most)

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This process's b rows of each step's batch, from a step on, without end.

        Yields:
          what `TrainingBatches.batches` does, with label -1 in the picture and the ignored label in
          the padding; classes int32 (b, k), ids from 0 in the order given, then 0; and real bool
          (b, k), which of them count.

        Raises:
          BadFile: see `TrainingBatches.batches`.
        """
        for step, batch in enumerate(self.views.batches(start_step), start_step):
            shown = [self.classes[i] for i in batch["index"]]
            yield {**batch, **padded(shown, self.bound(step))}


def padded(classes: Sequence[Sequence[int]], bound: int) -> dict[str, np.ndarray]:
    """Rows of class ids as arrays: classes int32 (b, bound) and real bool (b, bound)."""
    ids, real = np.zeros((len(classes), bound), np.int32), np.zeros((len(classes), bound), bool)
    for row, own in enumerate(classes):
        ids[row, : len(own)], real[row, : len(own)] = own, True
    return {"classes": ids, "real": real}
