"""The command `python -m input_pipeline.records_build`: a dataset's folder -> a folder of records.

A picture keeps its file's bytes; a label map becomes a grey PNG of the ids in its file, so that the
dataset's record applies to both forms. Everything is decoded once on the way, as evaluation would,
and one file that can't be used stops the build, at its end, with the names of all of them. The
folder appears when it is whole.

It ends with 0, 2 after one line `error: ...`, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from PIL import Image
from tqdm import tqdm

from input_pipeline import datasets
from input_pipeline.datasets import Dataset
from input_pipeline.images import BadFile, BadLabel, File, image_size, read_label
from input_pipeline.layout import Example, Part, Split
from input_pipeline.loading import load_example
from input_pipeline.plan import Size
from input_pipeline.records import (
    FORMAT,
    INDEX,
    RecordFile,
    RecordsError,
    is_address,
    open_shard,
)

KNOWN = {
    dataset.name.lower(): dataset
    for dataset in (
        datasets.VOC12_20,
        datasets.VOC12_21,
        datasets.CONTEXT_59,
        datasets.CONTEXT_60,
        datasets.COCO_STUFF_164K,
        datasets.COCO_STUFF_27,
        datasets.ADE20K,
        datasets.CITYSCAPES,
    )
}

_VERSION = "1.0.0"  # TFDS wants one; FORMAT is ours
_THREADS = min(32, os.cpu_count() or 1)
_SHOWN = 10  # bad files named in the error

_EXAMPLES = """\
examples:
  python -m input_pipeline.records_build voc12_20 --root /data/VOCdevkit/VOC2012 --out /data/voc
  python -m input_pipeline.records_build coco_stuff_27 --root /data/coco_stuff164k --out /data/stuff
  python -m input_pipeline.records_build folder --root my_pictures --out my_records --split val
OUT is then a --config.dataset.root like any other, for VOC12_20 and VOC12_21 alike; so is
gs://bucket/voc after: gcloud storage cp -r /data/voc gs://bucket
"""


class Row(NamedTuple):
    """What a record holds of an example, and the picture's size for the index."""

    name: str
    image: bytes
    label: bytes
    size: Size


def build(
    dataset: Dataset,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    splits: Sequence[str],
    *,
    name: str = "",
    shards: int | None = None,
) -> dict[str, int]:
    """Builds `out` from the splits of a dataset; returns how many pictures each has.

    Args:
      name: TFDS's name of it, like "voc12_20"; the dataset's own in small letters by default.
      shards: files per split; None: TFDS's choice by size.

    Raises:
      ValueError: an unknown split, or more shards than pictures. FileExistsError: `out` is there.
      FileNotFoundError: files of the dataset are missing. BadFile: some can't be used.
      RecordsError: the folder can't be written.
    """
    if is_address(out):
        raise ValueError(
            f"--out {out}: records are built in a local folder; then copy it there, e.g. with "
            f"gcloud storage cp -r"
        )
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; remove it, or choose another --out")
    examples = {split: dataset.index(root, split) for split in splits}
    for split, found in examples.items():
        labelled = sum(example.label_path is not None for example in found)
        if labelled not in (0, len(found)):
            raise ValueError(f"split {split}: {labelled} of {len(found)} pictures have a label")
        if shards is not None and not 1 <= shards <= len(found):
            raise ValueError(f"--shards {shards}: split {split} has {len(found)} pictures")

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        sizes: dict[str, list[Size]] = {split: [] for split in splits}
        rows = {split: _rows(dataset, examples[split], split, sizes[split]) for split in splits}
        counts = {split: len(found) for split, found in examples.items()}
        try:
            whole, written = _write(name or dataset.name.lower(), folder, rows, counts, shards)
            index = {
                split: {
                    "source": dataset.layout.source(split),
                    "labels": examples[split][0].label_path is not None,
                    "shards": written[split],
                    "names": [example.name for example in examples[split]],
                    "sizes": sizes[split],
                }
                for split in splits
            }
            for split in splits:
                _check(whole, split, index[split])
            _write_index(whole, {"format": FORMAT, "dataset": dataset.name, "splits": index})
        except RuntimeError as error:  # ArrayRecord's: disk full, no permission
            raise RecordsError(f"cannot write {out}: {error}") from error
        os.rename(whole, out)
    return counts


def _rows(
    dataset: Dataset, examples: Sequence[Example], split: str, sizes: list[Size]
) -> Iterator[dict[str, Any]]:
    """The split's examples for TFDS, in order; fills `sizes`."""
    bad: list[str] = []
    with tqdm(total=len(examples), unit="picture", desc=split, disable=None) as bar:
        for stored in _ahead(lambda example: _stored(dataset, example), examples):
            bar.update()
            if isinstance(stored, BadFile):
                bad.append(str(stored))
            elif not bad:  # what is written from now on is thrown away
                sizes.append(stored.size)
                image, label = io.BytesIO(stored.image), io.BytesIO(stored.label)
                yield {"name": stored.name, "image": image, "label": label}
        bar.set_description(f"{split}: {'failed' if bad else 'checked, writing its shards'}")
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise BadFile(
            f"split {split}: {len(bad)} of {len(examples)} pictures can't be used, nothing was "
            f"built:\n  " + "\n  ".join(bad[:_SHOWN]) + more
        )


def _stored(dataset: Dataset, example: Example) -> Row | BadFile:
    """An example's bytes, or what is wrong with it."""
    try:
        size = image_size(example.image_path)
        load_example(dataset, example, 0, size, None, 0)
        label = b"" if example.label_path is None else _grey_png(example.label_path)
        return Row(example.name, example.image_path.read_bytes(), label, size)
    except BadFile as error:
        return error


def _grey_png(path: File) -> bytes:
    """A label map's ids as a grey PNG; the file itself if it is one."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        if image.format == "PNG" and image.mode == "L":
            return content
    ids = read_label(path)
    if ids.min() < 0 or ids.max() > 255:
        raise BadLabel(f"{path}: ids {ids.min()} to {ids.max()}, and records keep 8 bits")
    file = io.BytesIO()
    Image.fromarray(ids.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _ahead(make: Callable[[Example], Any], examples: Sequence[Example]) -> Iterator[Any]:
    """`map` in threads, a few results ahead of the consumer."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future] = deque()
        for example in examples:
            waiting.append(pool.submit(make, example))
            if len(waiting) > 2 * _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write(
    name: str,
    folder: str,
    rows: dict[str, Iterator[dict[str, Any]]],
    counts: dict[str, int],
    shards: int | None,
) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Lets TFDS write everything below `folder`; where it is, and each split's shards."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "building records needs TFDS; install the data extra: pip install 'clipseg_jax[data]'"
        ) from error
    tfds.disable_progress_bar()
    tfds_name = name

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Pictures with label maps of class ids, as in the dataset's own files."""

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
            # Beyond a gigabyte TFDS sorts in buckets, one by one in memory, and gives each an
            # equal share of all 128-bit keys. Small numbers would all lie in the first.
            step = 2**128 // counts[split]
            for number, row in enumerate(rows[split]):
                yield number * step, row

    builder = Builder(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=shards)
    with contextlib.redirect_stdout(None):  # it announces a folder that is about to move
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir), {
        split: [
            {"file": path.name, "records": int(length), "bytes": os.path.getsize(path)}
            for path, length in zip(info.filepaths, info.shard_lengths, strict=True)
        ]
        for split, info in builder.info.splits.items()
    }


def _check(folder: Path, split: str, entry: dict[str, Any]) -> None:
    """Reads back every shard's count, and whether its first and last record are where they are.

    Raises:
      RecordsError: TFDS or the disk has not kept what was given.
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
        raise RecordsError(f"split {split}: {start} records written of {len(names)} pictures")


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(folder / INDEX), "group_size:1")
    writer.write(json.dumps(index).encode("utf-8"))
    writer.close()


def known(name: str, root: str | os.PathLike[str]) -> Dataset:
    """The dataset of a name; "folder" is a plain one, whose labels may be any 8-bit ids."""
    if name != "folder":
        return KNOWN[name]
    made = datasets.folder(root, [str(i) for i in range(256)])
    splits = []
    for split, below in (("train", "train/"), ("val", "")):
        labels = f"{below}labels"
        there = (Path(root) / labels).is_dir()
        splits.append((split, Split((Part(f"{below}images", labels if there else None),))))
    return dataclasses.replace(made, layout=dataclasses.replace(made.layout, splits=tuple(splits)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see python -m input_pipeline.records_build --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m input_pipeline.records_build",
        description="Build TFDS records (ArrayRecord) from a dataset's folder.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        choices=(*KNOWN, "folder"),
        help=f"{', '.join(KNOWN)}; or folder: images/ and labels/, in train/ those to train on",
    )
    parser.add_argument("--root", metavar="DIR", required=True, help="the dataset's folder")
    parser.add_argument("--out", metavar="OUT", required=True, help="the folder to make")
    parser.add_argument("--split", default="train,val", help="which splits (default: %(default)s)")
    parser.add_argument(
        "--shards", metavar="N", type=int, help="files per split (default: by size, up to 1 GiB)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; see the module for what it returns."""
    args = _parser().parse_args(argv)
    splits = list(dict.fromkeys(args.split.split(",")))
    try:
        dataset = known(args.name, args.root)
        counts = build(dataset, args.root, args.out, splits, name=args.name, shards=args.shards)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was built", file=sys.stderr)
        return 130
    print(f"{args.out}: {', '.join(f'{split} {count}' for split, count in counts.items())}")
    return 0


if __name__ == "__main__":
    # Ends as an exception does, so that what was half built is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
