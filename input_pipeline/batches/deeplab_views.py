"""Training batches of views at a few scales: DeepLab's data (spec deeplab, section 4)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from input_pipeline.batches.training import TrainingBatches, batches_of
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
    """What DeepLab's training sees of a picture: float32 grey levels (*crop_hw, 3) and its label.

    Resize by one of `scales`, pad at the bottom and right to the crop's size, crop, flip. Grey
    levels are not rounded. Four draws: the scale, the box's top and left, the flip.

    Args:
      colour: RGB of the padding, which is to be 0 after normalisation: the mean.
    """
    scale = scales[rng.randint(len(scales))]
    height, width = (max(int(side * scale), 1) for side in label.shape)
    image = resize(image.astype(np.float32), (height, width))
    # Pillow's own resize: where floor((i + 0.5) * in / out) is a whole number it rounds at will.
    picture = Image.fromarray(np.asarray(label, np.int32))
    label = np.asarray(picture.resize((width, height), Image.Resampling.NEAREST), label.dtype)
    below, right = max(crop_hw[0] - height, 0), max(crop_hw[1] - width, 0)
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=tuple(colour))
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
    **options: Any,
) -> TrainingBatches:
    """Endless batches of scaled views: float32 images that fill the crop.

    Args:
      scales, crop_hw, colour: see `multi_scale_crop`.
      options: `batch_size` and those after `unlabeled` in `training.training`.

    Raises:
      ValueError: as `training.training`; no scales, or one that isn't positive.
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
    return batches_of(
        dataset,
        examples,
        view=view,
        blind_view=view,
        crop_hw=crop_hw,
        kind="float32",
        hidden=(),
        **options,
    )
