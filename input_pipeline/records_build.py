"""The command `python -m input_pipeline.records_build`: a dataset's folder -> a folder of records.

A picture keeps its file's bytes; a label map becomes a grey PNG of the ids in its file, so that the
dataset's record applies to both forms. The image labels of the annotations, where there are any, go
into the index. Everything is decoded once on the way, as evaluation would, and one file that can't
be used stops the build, at its end, with the names of all of them. The folder appears when it is
whole.

It ends with 0, 2 after one line `error: ...`, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input_pipeline import commands
from input_pipeline.batches.buckets import Size
from input_pipeline.datasets import catalog
from input_pipeline.datasets.catalog import Dataset
from input_pipeline.datasets.image_labels import has_annotations, image_labels
from input_pipeline.datasets.layout import Part, Split
from input_pipeline.datasets.records import FORMAT, RecordsError, is_address
from input_pipeline.prepare import records_write

_EXAMPLES = """\
examples:
  python -m input_pipeline.records_build voc12_20 --root /data/VOCdevkit/VOC2012 --out /data/voc
  python -m input_pipeline.records_build coco_stuff_27 --root /data/coco_stuff164k --out /data/stuff
  python -m input_pipeline.records_build folder --root my_pictures --out my_records --split val
OUT is then a --config.dataset.root like any other, for VOC12_20 and VOC12_21 alike; so is
gs://bucket/voc after: gcloud storage cp -r /data/voc gs://bucket
"""


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
    tagged = {
        split: {"image_labels": image_labels(dataset, root, split, examples[split]).labels}
        if has_annotations(dataset, root, split)
        else {}
        for split in splits
    }

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        sizes: dict[str, list[Size]] = {split: [] for split in splits}
        rows = {
            split: records_write.rows(dataset, examples[split], split, sizes[split])
            for split in splits
        }
        counts = {split: len(found) for split, found in examples.items()}
        try:
            whole, written = records_write.write(
                name or dataset.name.lower(), folder, rows, counts, shards
            )
            index: dict[str, dict[str, Any]] = {
                split: {
                    "source": dataset.layout.source(split),
                    "labels": examples[split][0].label_path is not None,
                    "shards": written[split],
                    "names": [example.name for example in examples[split]],
                    "sizes": sizes[split],
                    **tagged[split],
                }
                for split in splits
            }
            for split in splits:
                records_write.check_shards(whole, split, index[split])
            records_write.write_index(
                whole, {"format": FORMAT, "dataset": dataset.name, "splits": index}
            )
        except RuntimeError as error:  # ArrayRecord's: disk full, no permission
            raise RecordsError(f"cannot write {out}: {error}") from error
        os.rename(whole, out)
    return counts


def find_record(name: str, root: str | os.PathLike[str]) -> Dataset:
    """The dataset of a name; "folder" is a plain one, whose labels may be any 8-bit ids."""
    if name != "folder":
        return catalog.BY_NAME[name]
    made = catalog.folder(root, [str(i) for i in range(256)])
    splits = []
    for split, below in (("train", "train/"), ("val", "")):
        labels = f"{below}labels"
        there = (Path(root) / labels).is_dir()
        splits.append((split, Split((Part(f"{below}images", labels if there else None),))))
    return dataclasses.replace(made, layout=dataclasses.replace(made.layout, splits=tuple(splits)))


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(
        "input_pipeline.records_build",
        "Build TFDS records (ArrayRecord) from a dataset's folder.",
        _EXAMPLES,
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        choices=(*catalog.BY_NAME, "folder"),
        help=f"{', '.join(catalog.BY_NAME)}; or folder: images/ and labels/, in train/ those to "
        "train on",
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
    return commands.exit_code(lambda: _run(args), interrupted="stopped; nothing was built")


def _run(args: argparse.Namespace) -> int:
    splits = list(dict.fromkeys(args.split.split(",")))
    dataset = find_record(args.name, args.root)
    counts = build(dataset, args.root, args.out, splits, name=args.name, shards=args.shards)
    print(f"{args.out}: {', '.join(f'{split} {count}' for split, count in counts.items())}")
    return 0


if __name__ == "__main__":
    # Ends as an exception does, so that what was half built is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
