"""One example from its files: picture and label read, and checked against each other."""

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
)
from input_pipeline.datasets.layout import Example


def read_example(dataset: Dataset, example: Example) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels (h, w, 3) and class ids (h, w), if it has any, of one example.

    Raises:
      BadFile: either file is bad, or they don't fit each other.
    """
    image = read_image(example.image_path)
    if example.label_path is None:
        return image, None
    label = read_label(
        example.label_path,
        dataset.num_classes,
        reduce_zero_label=dataset.reduce_zero_label,
        ignore_label=dataset.ignore_label,
    )
    if label.shape != image.shape[:2]:
        raise BadLabel(
            f"{example.label_path}: {label.shape[0]} x {label.shape[1]} pixels, but its picture "
            f"{example.image_path} has {image.shape[0]} x {image.shape[1]}; labels must match "
            f"their picture."
        )
    return image, label


def load_example(
    dataset: Dataset,
    example: Example,
    index: int,
    size: Size,
    corruption: tuple[str, int] | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """`read_example` for evaluation: checked against what is known, and corrupted if asked for.

    Args:
      index: the example's position, which keys the corruption's noise.
      size: what `image_size` said.

    Raises:
      BadFile: either file is bad, or they don't fit each other or `size`.
    """
    image, label = read_example(dataset, example)
    if image.shape[:2] != size:
        raise BadImage(
            f"{example.image_path}: decodes to {image.shape[0]} x {image.shape[1]} pixels, its "
            f"header said {size[0]} x {size[1]}; save it anew."
        )
    if corruption is not None:
        image = corrupt(image, *corruption, sample_rng(seed, 0, index))
    return image, label


def example_sizes(
    examples: Sequence[Example], network_size: Callable[[int, int], Size] | None
) -> tuple[dict[int, Size], dict[int, BadFile]]:
    """Size of every picture by its index, and the error of those without a usable one."""

    def measure(example: Example) -> Size | BadFile:
        try:
            size = image_size(example.image_path)
            if network_size is not None:
                network_size(*size)
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
