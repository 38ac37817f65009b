"""Datasets as records: a few large ArrayRecord shards, made by TFDS, read like the folder.

A folder written by `python -m input_pipeline.records_build` is a root for `Dataset.index` as the
dataset's own folder is: same names, same order, same bytes. Beside TFDS's files (which
`tfds.builder_from_directory` opens, too) it holds INDEX: names, sizes and shards in order, so that
planning batches reads no picture. A record is fetched once for its picture and its label.

On a pod, the root may be in a bucket: ArrayRecord opens gs:// itself, with the machine's default
credentials, and fetches a record with one request. TensorFlow's or TFDS's file systems are not
involved. Writing needs a local folder: build there, then `gcloud storage cp -r OUT gs://...`. Other
buckets can be mounted (Cloud Storage FUSE, s3fs), and the mounted folder be named; nothing is ever
locked or written. Nothing is kept on the local disk, so each epoch fetches the records again: copy
a set that fits there. Without a network, Cloud Storage's client tries for minutes before it fails.

Of a local folder every shard's length is checked before anything is read; in a bucket a shard that
is cut short shows when it is opened. Each record carries a checksum.
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

from input_pipeline.datasets.images import BadFile
from input_pipeline.datasets.layout import Example, Layout

INDEX = "index.array_record"
FORMAT = 1

# Each read is of one record, wherever it lies.
_RANDOM_ACCESS = {
    "options": "readahead_buffer_size:0,max_parallelism:0",
    "file_reader_buffer_size": 1 << 15,
}
_OPEN_SHARDS = 256


class RecordsError(OSError):
    """A folder of records, or a shard of it, that can't be read; no single picture is to blame."""


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A picture or a label map in a record; stands in for a path in an `Example`.

    Holds names only, so it can be sent to other processes. Each process opens a shard when it first
    needs it.

    Attributes:
      size: (height, width) of the upright picture.
    """

    shard: str
    position: int
    kind: Literal["image", "label"]
    name: str
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.shard} record {self.position} ({self.kind} of {self.name})"

    def read_bytes(self) -> bytes:
        """The file's bytes, as they were when the records were built.

        Raises:
          BadFile: this record is damaged.
          RecordsError: the whole shard can't be read.
        """
        features = _record(self.shard, self.position, str(self))
        if features["name"].bytes_list.value[0].decode("utf-8") != self.name:
            raise RecordsError(
                f"{self}: another picture lies here; {INDEX} and the shards are not of the same "
                f"build, copy the whole folder again"
            )
        return features[self.kind].bytes_list.value[0]


def find(root: str | os.PathLike[str], folders: tuple[str, ...] = ()) -> str | None:
    """The folder of records that a dataset's root means; None: it is an ordinary folder.

    Args:
      folders: a layout's; only an absolute path or an address counts, and stands for any root.

    Raises:
      RecordsError: there are shards, but not the index that is written last.
    """
    own = [folder for folder in folders if is_address(folder) or os.path.isabs(folder)]
    home = own[0] if own else os.fspath(root)
    if is_address(home):
        return home.rstrip("/")  # it can't be anything else
    if Path(home, INDEX).is_file():
        return home
    if next(Path(home).glob("*.array_record*"), None) is not None:
        raise RecordsError(
            f"{home} holds records but no {INDEX}, so they are not whole; copy the whole folder "
            f"again, or build it with python -m input_pipeline.records_build"
        )
    return None


def is_address(root: str | os.PathLike[str]) -> bool:
    """Whether a root is in a bucket, gs://..., and not a path."""
    return "://" in os.fspath(root)


def index(layout: Layout, home: str, split: str) -> list[Example]:
    """A split's examples from the folder of records `home`; see `Dataset.index`.

    Whether there are labels is up to the records.

    Raises:
      ValueError: no such split in the layout or the records, or the records are of other files.
      RecordsError: no index, or a shard that is missing or cut short.
    """
    source = layout.source(split)
    splits = read_index(home)["splits"]
    if split not in splits:
        raise ValueError(
            f"{home} holds no records of split {split!r}, only: {', '.join(splits)}; build them "
            f"with --split {','.join([*splits, split])}"
        )
    stored = splits[split]
    if not set(source) <= set(stored["source"]):
        raise ValueError(
            f"{home} holds another dataset's records: split {split} was built from "
            f"{', '.join(stored['source'])}, and this dataset is made of {', '.join(source)}"
        )
    examples: list[Example] = []
    pictures = zip(stored["names"], stored["sizes"], strict=True)
    for shard in stored["shards"]:
        path = os.path.join(home, shard["file"])
        _check_length(path, shard["bytes"])
        for position in range(shard["records"]):
            name, (height, width) = next(pictures)
            image = RecordFile(path, position, "image", name, (height, width))
            label = RecordFile(path, position, "label", name, (height, width))
            examples.append(Example(name, image, label if stored["labels"] else None))
    return examples


def read_index(home: str) -> dict[str, Any]:
    """The index of a folder of records, as `records_build` wrote it.

    Raises:
      RecordsError: there is none, it is damaged, or it is of a later format.
    """
    path = os.path.join(home, INDEX)
    reader = open_shard(path)
    try:
        index = json.loads(reader.read([0])[0])
    except (RuntimeError, ValueError) as error:
        raise RecordsError(f"{path}: damaged ({error}); copy or build the folder again") from error
    if index["format"] != FORMAT:
        raise RecordsError(
            f"{path} is of format {index['format']}, this version reads {FORMAT}; build the "
            f"records again, or update"
        )
    return index


def open_shard(path: str) -> Any:
    """A thread-safe reader, with `num_records()` and `read([position, ...])`.

    Raises:
      RecordsError: missing, cut short, damaged at its end, or not reachable.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError(
            "reading records needs array_record, which is there for Linux and macOS; install the "
            "data extra: pip install 'clipseg_jax[data]'"
        ) from error
    reader = array_record_module.ArrayRecordReader(path, **_RANDOM_ACCESS)
    if reader.ok():
        return reader
    try:
        reader.read([0])  # says why
        cause = "can't be opened"
    except RuntimeError as error:
        cause = " ".join(str(error).split())
    raise RecordsError(f"{path}: not readable ({cause}); copy or build the folder again")


def _check_length(path: str, length: int) -> None:
    """A copy that stopped early is found now, and not in the middle of a run."""
    if is_address(path):
        return
    found = os.path.getsize(path) if os.path.isfile(path) else None
    if found != length:
        state = "is missing" if found is None else f"has {found} bytes, not {length}"
        raise RecordsError(f"{path} {state}; copy the whole folder again, or build it again")


_last = threading.local()


def _record(shard: str, position: int, what: str) -> Any:
    """The features of a record. A thread's last one is kept: the label's turn comes next."""
    if getattr(_last, "place", None) == (shard, position):
        return _last.features
    from tensorflow_datasets.proto import tf_example_pb2  # doesn't import TensorFlow

    try:
        content = _shard(shard).read([position])[0]
        features = tf_example_pb2.Example.FromString(content).features.feature
    except RuntimeError as error:  # all that ArrayRecord raises
        message = (
            f"{what}: not readable ({' '.join(str(error).split())}); copy the shard again, or "
            f"build the folder again"
        )
        # Only what is surely wrong with this one record may be left out; a lost connection isn't.
        raise (BadFile if "Corrupted" in message else RecordsError)(message) from error
    _last.features, _last.place = features, (shard, position)
    return features


_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def _shard(path: str) -> Any:
    """`open_shard`, once in each process: the threads that need it, too, wait for the first."""
    with _locks[path]:
        return _opened(path, os.getpid())


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _opened(path: str, process: int) -> Any:
    del process  # a forked one opens its own
    return open_shard(path)
