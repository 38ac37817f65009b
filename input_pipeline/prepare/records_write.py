"""Writes a split's images and labels as records: bytes of files, shards by TFDS, the index.

Used by `records_build`. Every file is decoded once as a check.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from input_pipeline.batches.buckets import Size
from input_pipeline.batches.loading import load_example
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.images import (
    BadFile,
    BadLabel,
    File,
    image_size,
    open_image,
    read_label,
)
from input_pipeline.datasets.layout import Example
from input_pipeline.datasets.records import INDEX, RecordFile, RecordsError, open_shard

_VERSION = "1.0.0"  # required by TFDS; our own is FORMAT
_THREADS = min(32, os.cpu_count() or 1)
_SHOWN = 10  # bad files named in the error


class Row(NamedTuple):
    """The content of a record, and the size of the image for the index."""

    name: str
    image: bytes
    label: bytes
    size: Size


def read_rows(
    dataset: Dataset, examples: Sequence[Example], split: str, sizes: list[Size]
) -> Iterator[dict[str, Any]]:
    """Yields the split's examples for TFDS, in order, and appends their sizes to `sizes`.

    Raises:
      BadFile: files that cannot be used, after all have been checked.
    """
    bad: list[str] = []
    with tqdm(total=len(examples), unit="image", desc=split, disable=None) as bar:
        for row in _map_ahead(lambda example: _read_row(dataset, example), examples):
            bar.update()
            if isinstance(row, BadFile):
                bad.append(str(row))
            elif not bad:  # after a bad file nothing is kept
                sizes.append(row.size)
                image, label = io.BytesIO(row.image), io.BytesIO(row.label)
                yield {"name": row.name, "image": image, "label": label}
        bar.set_description(f"{split}: {'failed' if bad else 'checked, writing its shards'}")
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise BadFile(
            f"split {split}: {len(bad)} of {len(examples)} images cannot be used, nothing was "
            f"built:\n  " + "\n  ".join(bad[:_SHOWN]) + more
        )


def _read_row(dataset: Dataset, example: Example) -> Row | BadFile:
    """The content of an example's record, or its error."""
    try:
        size = image_size(example.image_path)
        load_example(dataset, example, 0, size, None, 0)
        label = b"" if example.label_path is None else _grey_png(example.label_path)
        return Row(example.name, example.image_path.read_bytes(), label, size)
    except BadFile as error:
        return error


def _grey_png(path: File) -> bytes:
    """A label map as a grey PNG; the bytes of the file if it is one."""
    content = path.read_bytes()
    with open_image(io.BytesIO(content)) as image:
        if image.format == "PNG" and image.mode == "L":
            return content
    ids = read_label(path)
    if ids.min() < 0 or ids.max() > 255:
        raise BadLabel(f"{path}: ids {ids.min()} to {ids.max()} do not fit into 8 bits")
    file = io.BytesIO()
    Image.fromarray(ids.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _map_ahead(function: Callable[[Example], Any], examples: Sequence[Example]) -> Iterator[Any]:
    """`map` in threads, a few results ahead of the consumer."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pending: deque[Future] = deque()
        for example in examples:
            pending.append(pool.submit(function, example))
            if len(pending) > 2 * _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def write(
    name: str,
    folder: str,
    rows: dict[str, Iterator[dict[str, Any]]],
    counts: dict[str, int],
    shards: int | None,
) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Writes all splits below `folder` by TFDS.

    Args:
      name: TFDS's name of the dataset.
      rows: split -> its examples, see `read_rows`.
      counts: split -> number of examples.
      shards: files per split; None: TFDS's choice by size.

    Returns:
      The folder with the files, and of each split its shards: file, records, bytes.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "building records needs TFDS; install the data extra: pip install 'clipseg_jax[data]'"
        ) from error
    tfds.disable_progress_bar()
    tfds_name = name

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Images with label maps of class ids, as in the dataset's own files."""

        name = tfds_name
        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> Any:
            features = {
                "name": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                # Empty where a split has no labels.
                "label": tfds.features.Image(shape=(None, None, 1)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in rows}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            # Beyond a gigabyte TFDS sorts in buckets, each of which gets an equal part of all
            # 128-bit keys and is sorted in memory. Small numbers would all be in the first bucket.
            step = 2**128 // counts[split]
            for number, row in enumerate(rows[split]):
                yield number * step, row

    builder = Builder(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=shards)
    with contextlib.redirect_stdout(None):  # TFDS prints a folder that is renamed later
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir), {
        split: [
            {"file": path.name, "records": int(length), "bytes": os.path.getsize(path)}
            for path, length in zip(info.filepaths, info.shard_lengths, strict=True)
        ]
        for split, info in builder.info.splits.items()
    }


def check_shards(folder: Path, split: str, entry: dict[str, Any]) -> None:
    """Checks the number of records in each shard, and its first and last record.

    Raises:
      RecordsError: the shards are not what was written.
    """
    start, names = 0, entry["names"]
    for shard in entry["shards"]:
        path = str(folder / shard["file"])
        count = open_shard(path).num_records()
        if count != shard["records"] or start + count > len(names):
            raise RecordsError(f"{path}: {count} records written, {shard['records']} expected")
        for position in {0, count - 1}:
            RecordFile(path, position, "image", names[start + position], (0, 0)).read_bytes()
        start += count
    if not start == len(names) == len(entry["sizes"]):
        raise RecordsError(f"split {split}: {start} records written of {len(names)} images")


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Writes INDEX, which `records.read_index` reads."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(folder / INDEX), "group_size:1")
    writer.write(json.dumps(index).encode("utf-8"))
    writer.close()
