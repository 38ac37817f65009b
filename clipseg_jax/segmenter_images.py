"""Reads the images of a planned batch for `segmenter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.batches.buckets import PlannedBatch
from input_pipeline.datasets.images import BadImage, read_image
from input_pipeline.pictures import Picture, rgb_array


def read_batch(
    batch: PlannedBatch,
    pictures: Sequence[Picture],
    chosen: Sequence[int],
    sizes: Mapping[int, tuple[int, int]],
) -> tuple[np.ndarray, dict[int, BadImage]]:
    """Pixels (b, h, w, 3) uint8 of a batch, padded with zeros, and the errors by row.

    Args:
      batch: its padded shape, and which of its rows are images.
      pictures: of which a batch is a part.
      chosen: the index in `pictures` of each row.
      sizes: (height, width) of pictures by index, as they were when the batches were planned.
    """
    pixels = np.zeros((len(chosen), *batch.bucket_hw, 3), np.uint8)
    failed: dict[int, BadImage] = {}
    for row, index in enumerate(chosen):
        if not batch.valid[row]:
            continue
        h, w = sizes[index]
        try:
            picture = pictures[index]
            image = rgb_array(picture) if isinstance(picture, np.ndarray) else read_image(picture)
            if image.shape[:2] != (h, w):
                was = " x ".join(map(str, image.shape[:2]))
                raise BadImage(
                    f"{picture}: has {was} pixels now and had {h} x {w} when this run began; run "
                    "again when nothing writes to it"
                )
            pixels[row, :h, :w] = image
        except BadImage as error:
            failed[row] = error
    return pixels, failed
