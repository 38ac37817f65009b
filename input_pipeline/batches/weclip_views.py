"""Training batches of views in random places: WeCLIP's data (spec weclip, section 8.3)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.batches.training import TrainingBatches, batches_of
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.layout import Example


def random_placement_view(
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


def random_placement_batches(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    crop_hw: tuple[int, int],
    ratio_range: tuple[float, float] = (0.5, 2.0),
    **options: Any,
) -> TrainingBatches:
    """Endless batches of placed views. Their labels only tell what is padding, and is ignored.

    Args:
      crop_hw, ratio_range: see `random_placement_view`.
      options: `batch_size`, and those after `unlabeled` in `training.training`.

    Raises:
      ValueError: as `training.training`; or ratios that do not ascend from above 0.
    """
    if not 0 < ratio_range[0] <= ratio_range[1]:
        raise ValueError(f"ratio_range is {tuple(ratio_range)}; give (least, most), both above 0")
    view = functools.partial(
        random_placement_view,
        ratio_range=(ratio_range[0], ratio_range[1]),
        crop_hw=(crop_hw[0], crop_hw[1]),
        ignore_label=dataset.ignore_label,
    )
    return batches_of(
        dataset,
        examples,
        view=view,
        blind_view=view,
        crop_hw=crop_hw,
        kind="uint8",
        hidden=tuple(range(dataset.num_classes)),
        **options,
    )


def boxes(label: np.ndarray, ignore_label: int = 255) -> np.ndarray:
    """Where the picture is in each of labels (b, h, w): (b, 4) int32, top, left, bottom, right.

    Half open. A picture never vanishes: every view shows at least a pixel.
    """
    known = label != ignore_label
    ends = []
    for axis in (2, 1):
        lines = known.any(axis)
        ends.append((lines.argmax(1), lines.shape[1] - lines[:, ::-1].argmax(1)))
    (top, bottom), (left, right) = ends
    return np.stack([top, left, bottom, right], axis=1).astype(np.int32)
