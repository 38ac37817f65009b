"""Loads one example: image and label map are read and checked against each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from input_pipeline.batches.buckets import Size
from input_pipeline.batches.corruptions import corrupt
from input_pipeline.batches.transforms import sample_rng
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.images import (
    BadFile,
    BadImage,
    BadLabel,
    image_size,
    read_image,
    read_label,
    shrunk_size,
)
from input_pipeline.datasets.layout import Example


def read_example(dataset: Dataset, example: Example) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (h, w, 3) uint8 and label map (h, w) int32 of an example; None without a label file.

    Both are shrunk as `dataset.longest_px` says.

    Raises:
      BadFile: either file is bad, or their sizes differ.
    """
    image = read_image(example.image_path, dataset.longest_px)
    if example.label_path is None:
        return image, None
    label = read_label(
        example.label_path,
        dataset.num_classes,
        reduce_zero_label=dataset.reduce_zero_label,
        ignore_label=dataset.ignore_label,
    )
    shrinks = dataset.longest_px is not None
    size = image_size(example.image_path) if shrinks else image.shape[:2]
    if label.shape != size:
        raise BadLabel(
            f"{example.label_path}: {label.shape[0]} x {label.shape[1]} pixels, but its image "
            f"{example.image_path} has {size[0]} x {size[1]}; sizes must match."
        )
    return image, nearest(label, image.shape[:2])


def nearest(labels: np.ndarray, size: Size) -> np.ndarray:
    """Labels (h, w) at another (height, width), each pixel's that of the nearest one."""
    if labels.shape == size:
        return labels
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def load_example(
    dataset: Dataset,
    example: Example,
    index: int,
    size: Size,
    corruption: tuple[str, int] | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """`read_example` for evaluation: the size is checked, and a corruption applied.

    Args:
      index: the example's index, which seeds the corruption's noise together with `seed`.
      size: (height, width) by `image_size`, shrunk as the dataset says.
      corruption: (kind, level) of `corrupt`; None: none.

    Raises:
      BadFile: either file is bad, or their sizes differ from each other or from `size`.
    """
    image, label = read_example(dataset, example)
    if image.shape[:2] != size:
        raise BadImage(
            f"{example.image_path}: decodes to {image.shape[0]} x {image.shape[1]} pixels, but "
            f"its header says {size[0]} x {size[1]}; save it again."
        )
    if corruption is not None:
        image = corrupt(image, *corruption, sample_rng(seed, 0, index))
    return image, label


def example_sizes(
    examples: Sequence[Example],
    network_size: Callable[[int, int], Size] | None,
    longest_px: int | None = None,
) -> tuple[dict[int, Size], dict[int, BadFile]]:
    """Sizes of all files by index, and the errors of those that have no usable size.

    `longest_px`: see `read_image`; `network_size` takes the size that is read.
    """

    def measure(example: Example) -> Size | BadFile:
        try:
            size = image_size(example.image_path)
            if network_size is not None:
                network_size(*shrunk_size(*size, longest_px))
        except BadFile as error:
            return error
        except ValueError as error:
            return BadImage(f"{example.image_path}: {error}")
        return size

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        measured = dict(enumerate(pool.map(measure, examples)))
    return (
        {i: size for i, size in measured.items() if not isinstance(size, BadFile)},
        {i: error for i, error in measured.items() if isinstance(error, BadFile)},
    )
