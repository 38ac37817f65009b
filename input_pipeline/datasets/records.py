"""Datasets as records: a few large ArrayRecord shards, made by TFDS.

A folder written by `python -m input_pipeline.records_build` can be the root of `Dataset.index` in
place of the dataset's own folder: same names, same order, same bytes. Besides TFDS's files (which
`tfds.builder_from_directory` can open) it contains INDEX: names, sizes and shards in order, so that
planning batches reads no image. Image and label of an example are fetched together.

The root may be in a bucket: ArrayRecord opens gs:// itself, with the machine's default credentials,
and fetches a record with one request; file systems of TensorFlow and TFDS are not used. Writing
needs a local folder: build there, then `gcloud storage cp -r OUT gs://...`. Other buckets can be
mounted (Cloud Storage FUSE, s3fs); nothing is ever locked or written. Nothing is cached on the
local disk, so each epoch fetches the records again: copy a dataset that fits there. Without a
network Cloud Storage's client retries for minutes before it fails.

In a local folder the length of every shard is checked before anything is read; in a bucket a
truncated shard is detected when it is opened. Each record has a checksum.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from input_pipeline.datasets.images import MAX_PIXELS, BadFile
from input_pipeline.datasets.layout import Example, Layout
from input_pipeline.datasets.records_index import check_index
from input_pipeline.json_memory import check_json
from input_pipeline.text_lists import one_line, printable

INDEX = "index.array_record"
FORMAT = 1

# Records are read one at a time, in random order.
_RANDOM_ACCESS = {
    "options": "readahead_buffer_size:0,max_parallelism:0",
    "file_reader_buffer_size": 1 << 15,
}
_OPEN_SHARDS = 256
# Bounds on what a record unpacks to; ArrayRecord has none. An index packs to a tenth.
_TIMES_PACKED = 64
_LARGEST_RECORD = 8 * MAX_PIXELS  # bytes: an image of 16-bit RGB, and its label map


class RecordsError(OSError):
    """A folder of records, or a shard of it, cannot be read; not the fault of a single image."""


@dataclass(frozen=True, slots=True)
class RecordFile:
    """An image or label map in a record; takes the place of a path in an `Example`.

    Can be sent to other processes; each process opens a shard when it first needs it.

    Attributes:
      size: (height, width) of the upright image.
    """

    shard: str
    position: int
    kind: Literal["image", "label"]
    name: str
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.shard} record {self.position} ({self.kind} of {printable(self.name)})"

    def read_bytes(self) -> bytes:
        """The bytes of the file from which the record was built.

        Raises:
          BadFile: this record is damaged.
          RecordsError: the shard cannot be read.
        """
        features = _record(self.shard, self.position, str(self))
        try:
            name = features["name"].bytes_list.value[0].decode("utf-8")
            content = features[self.kind].bytes_list.value[0]
        except (IndexError, UnicodeDecodeError) as error:
            raise BadFile(
                f"{self}: the record has no name or no {self.kind}; build the folder again"
            ) from error
        if name != self.name:
            raise RecordsError(
                f"{self}: the record is of another image; {INDEX} and the shards are of different "
                f"builds, copy the whole folder again"
            )
        return content


def find_records(root: str | os.PathLike[str], folders: tuple[str, ...] = ()) -> str | None:
    """The folder of records at a dataset's root; None: the root is an ordinary folder.

    Args:
      folders: those of a `Layout`; an absolute path or an address among them replaces `root`.

    Raises:
      RecordsError: there are shards, but not the index, which is written last.
    """
    absolute = [folder for folder in folders if is_address(folder) or os.path.isabs(folder)]
    home = absolute[0] if absolute else os.fspath(root)
    if is_address(home):
        return home.rstrip("/")  # only records can be at an address
    if Path(home, INDEX).is_file():
        return home
    if next(Path(home).glob("*.array_record*"), None) is not None:
        raise RecordsError(
            f"{home} contains records but no {INDEX}: it is incomplete; copy the whole folder "
            f"again, or build it with python -m input_pipeline.records_build"
        )
    return None


def is_address(root: str | os.PathLike[str]) -> bool:
    """Whether a root is an address of a bucket, gs://..., and not a path."""
    return "://" in os.fspath(root)


def index_records(layout: Layout, home: str, split: str) -> list[Example]:
    """A split's examples from the folder of records `home`; see `Dataset.index`.

    They have label maps if the records have.

    Raises:
      ValueError: no such split in the layout or the records, or the records are of another dataset.
      RecordsError: there is no index, or a shard is missing or truncated.
    """
    source = layout.source(split)
    splits = read_index(home)["splits"]
    if split not in splits:
        raise ValueError(
            f"{home} contains no records of split {split!r}, only: "
            f"{printable(', '.join(splits))}; build the folder again with {split} in --split"
        )
    stored = splits[split]
    if not set(source) <= set(stored["source"]):
        raise ValueError(
            f"{home} contains records of another dataset: split {split} was built from "
            f"{printable(', '.join(stored['source']))}, but this dataset needs {', '.join(source)}"
        )
    examples: list[Example] = []
    images = zip(stored["names"], stored["sizes"], strict=True)
    for shard in stored["shards"]:
        path = os.path.join(home, shard["file"])
        _check_length(path, shard["bytes"])
        for position in range(shard["records"]):
            name, (height, width) = next(images)
            image = RecordFile(path, position, "image", name, (height, width))
            label = RecordFile(path, position, "label", name, (height, width))
            examples.append(Example(name, image, label if stored["labels"] else None))
    return examples


def read_index(home: str) -> dict[str, Any]:
    """The index of a folder of records, as `records_build` writes it.

    Raises:
      RecordsError: it is missing, damaged, or of another format.
    """
    path = os.path.join(home, INDEX)
    reader = open_shard(path)
    try:
        content = reader.read([0])[0]
        if not is_address(path) and len(content) > _TIMES_PACKED * os.path.getsize(path):
            raise ValueError(f"it unpacks to {len(content):,} bytes")
        check_json(content)
        index = json.loads(content)
        if not isinstance(index, dict):
            raise ValueError("it is no dictionary")
        if index.get("format") == FORMAT:
            check_index(index)
    except (RuntimeError, RecursionError, LookupError, ValueError) as error:
        raise RecordsError(
            f"{path}: damaged ({one_line(error)}); copy or build the folder again"
        ) from error
    if index.get("format") != FORMAT:
        raise RecordsError(
            f"{path} has format {index.get('format')!r:.60}, but this version reads {FORMAT}; "
            f"build the records again, or update clipseg_jax"
        )
    return index


def open_shard(path: str) -> Any:
    """A thread-safe reader of a shard, with `num_records()` and `read([position, ...])`.

    Raises:
      RecordsError: missing, truncated, damaged at its end, or not reachable.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError(
            "reading records needs array_record, available for Linux and macOS; install the "
            "data extra: pip install 'clipseg_jax[data]'"
        ) from error
    reader = array_record_module.ArrayRecordReader(path, **_RANDOM_ACCESS)
    if reader.ok():
        return reader
    try:
        reader.read([0])  # its error says why
        cause = "cannot be opened"
    except RuntimeError as error:
        cause = " ".join(str(error).split())
    raise RecordsError(f"{path}: not readable ({cause}); copy or build the folder again")


def _check_length(path: str, length: int) -> None:
    """Detects an incomplete copy now, not in the middle of a run."""
    if is_address(path):
        return
    actual = os.path.getsize(path) if os.path.isfile(path) else None
    if actual != length:
        state = "is missing" if actual is None else f"has {actual} bytes, not {length}"
        raise RecordsError(f"{path} {state}; copy the whole folder again, or build it again")


_last = threading.local()


def _record(shard: str, position: int, description: str) -> Any:
    """The features of a record; each thread keeps its last one, since image and label share it."""
    if getattr(_last, "location", None) == (shard, position):
        return _last.features
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2  # does not import TensorFlow

    try:
        content = _shard(shard).read([position])[0]
        if len(content) > _LARGEST_RECORD:
            raise BadFile(f"{description}: {len(content):,} bytes, more than an image; remove it")
        features = tf_example_pb2.Example.FromString(content).features.feature
    except DecodeError as error:
        raise BadFile(f"{description}: damaged; build the folder again") from error
    except RuntimeError as error:  # the only error that ArrayRecord raises
        message = (
            f"{description}: not readable ({' '.join(str(error).split())}); copy the shard again, "
            f"or build the folder again"
        )
        # Only a damaged record may be left out, not one that a lost connection makes unreadable.
        raise (BadFile if "Corrupted" in message else RecordsError)(message) from error
    _last.features, _last.location = features, (shard, position)
    return features


_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def _shard(path: str) -> Any:
    """`open_shard`, once per process: threads that need the same shard wait for the first."""
    with _locks[path]:
        return _opened(path, os.getpid())


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _opened(path: str, process: int) -> Any:
    del process  # part of the cache's key: a forked process opens its own
    return open_shard(path)
