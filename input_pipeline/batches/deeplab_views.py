"""Training batches of crops at a few scales: DeepLab's data (spec deeplab, section 4)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from input_pipeline.batches.training import TrainingBatches, make_training_batches
from input_pipeline.batches.transforms import flip, random_crop, resize
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.layout import Example


def multi_scale_crop(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.RandomState,
    *,
    scales: Sequence[float],
    crop_hw: tuple[int, int],
    colour: Sequence[float],
    ignore_label: int = 255,
) -> tuple[np.ndarray, np.ndarray]:
    """DeepLab's training view of an image: float32 (*crop_hw, 3) in 0..255, and its label map.

    Resize by one of `scales`, pad at the bottom and right to the crop's size, crop, flip. Pixel
    values are not rounded. Four draws: scale, top and left of the crop, flip.

    Args:
      scales: factors to choose from.
      colour: RGB of the padding: the mean, which becomes 0 by normalization.
      ignore_label: label of the padding.
    """
    scale = scales[rng.randint(len(scales))]
    height, width = (max(int(side * scale), 1) for side in label.shape)
    image = resize(image.astype(np.float32), (height, width))
    # Pillow's own resize: no formula gives its rounding where (i + 0.5) * in / out is whole.
    label_image = Image.fromarray(np.asarray(label, np.int32))
    label = np.asarray(label_image.resize((width, height), Image.Resampling.NEAREST), label.dtype)
    below, right = max(crop_hw[0] - height, 0), max(crop_hw[1] - width, 0)
    if below or right:
        border = cv2.BORDER_CONSTANT
        image = cv2.copyMakeBorder(image, 0, below, 0, right, border, value=tuple(colour))
        label = np.pad(label, ((0, below), (0, right)), constant_values=ignore_label)
    image, label = random_crop(image, label, rng, crop_hw, cat_max_ratio=1.0)
    return flip(image, label, rng)


def multi_scale_batches(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    scales: Sequence[float],
    crop_hw: tuple[int, int],
    colour: Sequence[float],
    batch_size: int,
    reshuffle: bool = True,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
) -> TrainingBatches:
    """Endless batches of crops at random scales: float32 images that fill the crop.

    Args:
      scales, crop_hw, colour: see `multi_scale_crop`.
      batch_size, reshuffle, seed, process_index, process_count, on_bad, threads: see
        `random_view_batches`.

    Raises:
      ValueError: see `random_view_batches`; or no scales, or one that is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales are {tuple(scales)}; give at least one, all above 0.")
    view = functools.partial(
        multi_scale_crop,
        scales=tuple(scales),
        crop_hw=(crop_hw[0], crop_hw[1]),
        colour=tuple(colour),
        ignore_label=dataset.ignore_label,
    )
    return make_training_batches(
        dataset,
        examples,
        view=view,
        unlabelled_view=view,
        crop_hw=crop_hw,
        dtype="float32",
        hidden=(),
        batch_size=batch_size,
        reshuffle=reshuffle,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        on_bad=on_bad,
        threads=threads,
    )
