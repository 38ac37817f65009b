"""Training batches of randomly placed views: WeCLIP's data (spec weclip, section 8.3)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from input_pipeline.batches.buckets import Size
from input_pipeline.batches.training import TrainingBatches, make_training_batches
from input_pipeline.batches.transforms import check_ratios
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
    """WeCLIP's training view of an image: uint8 (*crop_hw, 3), and its label map.

    Resize by a random ratio (Pillow's bilinear filter, which is antialiased), flip, crop. Where the
    image is smaller than the crop it is placed at random; the padding is black before
    normalization, as published. Six draws: ratio, flip, top and left of the image in the view, top
    and left of the crop in the image.
    """
    ratio = rng.uniform(*ratio_range)
    height, width = (max(int(side * ratio), 1) for side in label.shape)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    mirrored = rng.random_sample() > 0.5

    margins = [crop - side for crop, side in zip(crop_hw, (height, width), strict=True)]
    view_starts = [int(rng.randint(max(margin, 0) + 1)) for margin in margins]
    image_starts = [int(rng.randint(max(-margin, 0) + 1)) for margin in margins]
    lengths = [min(crop, side) for crop, side in zip(crop_hw, (height, width), strict=True)]
    view_box, image_box = (
        tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
        for starts in (view_starts, image_starts)
    )
    left, right = image_box[1].start, image_box[1].stop
    if mirrored:
        left, right = width - right, width - left
    # Cut out by Pillow, for few pixels become an array then.
    box = (left, image_box[0].start, right, image_box[0].stop)
    pixels, ids = np.asarray(resized.crop(box)), _nearest(label, (height, width), box)
    mirror = np.s_[:, ::-1] if mirrored else np.s_[:, :]
    view = np.zeros((*crop_hw, 3), np.uint8)
    view_label = np.full(crop_hw, ignore_label, label.dtype)
    view[view_box], view_label[view_box] = pixels[mirror], ids[mirror]
    return view, view_label


def _nearest(label: np.ndarray, size: Size, box: tuple[int, int, int, int]) -> np.ndarray:
    """A box (left, top, right, bottom) of a label map (h, w) that Pillow resizes to `size`."""
    left, top, right, bottom = box
    if (label == label[0, 0]).all():  # of an image without a label file
        return np.full((bottom - top, right - left), label[0, 0])
    image = Image.fromarray(np.asarray(label, np.int32))
    resized = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized.crop(box), label.dtype)


def random_placement_batches(
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    crop_hw: tuple[int, int],
    ratio_range: tuple[float, float] = (0.5, 2.0),
    batch_size: int,
    reshuffle: bool = True,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    threads: int | None = None,
) -> TrainingBatches:
    """Endless batches of randomly placed views. Their labels only mark the padding, as ignored.

    Args:
      crop_hw, ratio_range: see `random_placement_view`.
      batch_size, reshuffle, seed, process_index, process_count, on_bad, threads: see
        `random_view_batches`.

    Raises:
      ValueError: see `random_view_batches`; or ratios that do not ascend from above 0.
    """
    view = functools.partial(
        random_placement_view,
        ratio_range=check_ratios(ratio_range),
        crop_hw=(crop_hw[0], crop_hw[1]),
        ignore_label=dataset.ignore_label,
    )
    return make_training_batches(
        dataset,
        examples,
        view=view,
        unlabelled_view=view,
        crop_hw=crop_hw,
        dtype="uint8",
        hidden=tuple(range(dataset.num_classes)),
        batch_size=batch_size,
        reshuffle=reshuffle,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        on_bad=on_bad,
        threads=threads,
    )


def image_boxes(label: np.ndarray, ignore_label: int = 255) -> np.ndarray:
    """Box (b, 4) int32 (top, left, bottom, right) of what is not padding in labels (b, h, w).

    Bottom and right are exclusive. Every view must show at least one pixel of its image.
    """
    not_padding = label != ignore_label
    ends = []
    for axis in (2, 1):
        lines = not_padding.any(axis)
        ends.append((lines.argmax(1), lines.shape[1] - lines[:, ::-1].argmax(1)))
    (top, bottom), (left, right) = ends
    return np.stack([top, left, bottom, right], axis=1).astype(np.int32)
