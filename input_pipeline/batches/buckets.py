"""Plans which images go into which batch: few static shapes, every image once, equal steps.

The plan depends on sizes alone and is the same in every process. Process p of n takes rows
[p * b/n, (p + 1) * b/n) of every global batch of b rows, so all processes run the same number of
steps with the same shapes, and no image is dropped or counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Size = tuple[int, int]  # height, width

_MAX_CELLS = 256  # the merge compares all pairs


@dataclass(frozen=True)
class PlannedBatch:
    """The plan of one global batch.

    Attributes:
      bucket_hw: (height, width) to which its images are padded at their original size.
      network_hw: the same at network size.
      indices: positions of the images in the list of sizes; filler rows repeat the first image.
      valid: False for filler rows.
    """

    bucket_hw: Size
    network_hw: Size
    indices: tuple[int, ...]
    valid: tuple[bool, ...]


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of every global batch that belong to one process.

    Raises:
      ValueError: process_index is out of range, or batch_size is not divisible by process_count.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index {process_index} is not in 0..{process_count - 1} ({process_count} "
            f"processes)."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is not divisible by {process_count} processes; set it to "
            f"{max(-(-batch_size // process_count), 1) * process_count}."
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def plan_batches(
    sizes: Sequence[Size],
    batch_size: int,
    *,
    network_size: Callable[[int, int], Size] | None = None,
    bucket_px: int = 64,
    max_buckets: int = 8,
    network_multiple: int = 16,
) -> list[PlannedBatch]:
    """Groups images of the given (height, width) into batches of one padded shape each.

    Sizes are rounded up to multiples of `bucket_px`; then the two shapes whose union adds the
    fewest padded pixels (original and network size together, over all their images) are merged,
    until at most `max_buckets` are left. The largest bucket comes first, so that memory runs out
    early or not at all; images of a bucket keep their order.

    Args:
      batch_size: rows of a global batch.
      network_size: (height, width) of an image -> its (height, width) at the network's input; None:
        unchanged.
      network_multiple: padded shapes at the network's input are multiples of it.

    Raises:
      ValueError: a count or multiple below 1, or a size without pixels.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("bucket_px", bucket_px),
        ("max_buckets", max_buckets),
        ("network_multiple", network_multiple),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if not len(sizes):
        return []
    original = np.asarray(sizes, np.int64)
    network = original
    if network_size is not None:
        distinct, inverse = np.unique(original, axis=0, return_inverse=True)
        network = np.asarray([network_size(int(h), int(w)) for h, w in distinct], np.int64)
        network = network[inverse.reshape(-1)]
    if min(original.min(), network.min()) < 1:
        index = int(np.argmax((original < 1).any(1) | (network < 1).any(1)))
        raise ValueError(
            f"Image {index} has size {tuple(original[index])}, at the network's input "
            f"{tuple(network[index])}; both must be at least 1 x 1 pixels."
        )

    bucket_of, shapes = _buckets(original, network, bucket_px, max_buckets, network_multiple)
    batches = []
    for bucket in sorted(range(len(shapes)), key=lambda i: (-_area(shapes[i]), tuple(shapes[i]))):
        height, width, network_height, network_width = (int(n) for n in shapes[bucket])
        members = np.flatnonzero(bucket_of == bucket).tolist()
        for start in range(0, len(members), batch_size):
            indices = members[start : start + batch_size]
            missing = batch_size - len(indices)
            batches.append(
                PlannedBatch(
                    (height, width),
                    (network_height, network_width),
                    tuple(indices + indices[:1] * missing),
                    (True,) * len(indices) + (False,) * missing,
                )
            )
    return batches


def _area(shape: np.ndarray) -> int:
    return int(shape[..., 0] * shape[..., 1] + shape[..., 2] * shape[..., 3])


def _buckets(
    original: np.ndarray,
    network: np.ndarray,
    bucket_px: int,
    max_buckets: int,
    network_multiple: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Bucket of each image (n,), and the buckets' (height, width, network height, width)."""
    while True:  # coarser cells where there are very many shapes
        rounded = _round_up(original, bucket_px)
        cells, bucket_of, counts = np.unique(
            rounded, axis=0, return_inverse=True, return_counts=True
        )
        if len(cells) <= max(_MAX_CELLS, max_buckets):
            break
        bucket_px *= 2
    bucket_of = bucket_of.reshape(-1)
    shapes = np.zeros((len(cells), 4), np.int64)
    shapes[:, :2] = cells
    network_shapes = shapes[:, 2:]
    np.maximum.at(network_shapes, bucket_of, _round_up(network, network_multiple))

    while len(shapes) > max_buckets:
        keep, gone = _cheapest_pair(shapes, counts)
        shapes[keep] = np.maximum(shapes[keep], shapes[gone])
        counts[keep] += counts[gone]
        bucket_of[bucket_of == gone] = keep
        bucket_of[bucket_of > gone] -= 1
        shapes, counts = np.delete(shapes, gone, axis=0), np.delete(counts, gone)
    return bucket_of, shapes


def _cheapest_pair(shapes: np.ndarray, counts: np.ndarray) -> tuple[int, int]:
    """The two buckets (first < second) whose merging adds the fewest padded pixels."""
    areas = shapes[:, 0] * shapes[:, 1] + shapes[:, 2] * shapes[:, 3]
    union = np.maximum(shapes[:, None], shapes[None])
    merged = union[..., 0] * union[..., 1] + union[..., 2] * union[..., 3]
    added = counts[:, None] * (merged - areas[:, None]) + counts * (merged - areas)
    first, second = np.triu_indices(len(shapes), 1)
    best = int(np.argmin(added[first, second]))
    return int(first[best]), int(second[best])


def _round_up(sizes: np.ndarray, multiple: int) -> np.ndarray:
    return -(-sizes // multiple) * multiple
