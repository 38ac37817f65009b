"""The command `python -m input_pipeline.records_build`: a dataset's folder -> a folder of records.

Images are stored as the bytes of their files; label maps as grey PNGs of the ids in their files, so
that the dataset's record applies to both forms. Image labels from annotations, if there are any,
are stored in the index. Every file is decoded once as a check; if any cannot be used nothing is
built, and all of them are named. The folder appears when it is complete.

Exit status: 0, 2 after an error, which prints one line `error: ...`, 130 after Ctrl-C.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.stop_at_once()  # before the imports below

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
from input_pipeline.datasets.catalog import BY_NAME, Dataset, folder
from input_pipeline.datasets.image_labels import has_annotations, image_labels
from input_pipeline.datasets.layout import Part, Split
from input_pipeline.datasets.records import FORMAT, RecordsError, is_address
from input_pipeline.prepare import records_write

_EXAMPLES = """\
examples:
  python -m input_pipeline.records_build voc12_20 --root /data/VOCdevkit/VOC2012 --out /data/voc
  python -m input_pipeline.records_build coco_stuff_27 --root /data/coco_stuff164k --out /data/stuff
  python -m input_pipeline.records_build folder --root my_images --out my_records --split val
OUT can then be used as --config.dataset.root, both for VOC12_20 and for VOC12_21; so can
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
    """Builds a folder of records from the splits of a dataset.

    Args:
      out: the folder to make.
      name: TFDS's name of the dataset, like "voc12_20"; "": the record's name in lower case.
      shards: files per split; None: TFDS's choice by size.

    Returns:
      Split -> number of images.

    Raises:
      ValueError: `out` is not local, an unknown split, labels for some images only, or more shards
        than images.
      FileExistsError: `out` exists and is not an empty folder.
      FileNotFoundError: files of the dataset are missing.
      BadFile: some files cannot be used.
      RecordsError: the folder cannot be written.
    """
    if is_address(out):
        raise ValueError(
            f"--out {out}: records can only be built in a local folder; build there, then copy "
            f"it, e.g. with gcloud storage cp -r"
        )
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists; remove it, or choose another --out")
    examples = {split: dataset.index(root, split) for split in splits}
    for split, members in examples.items():
        labelled = sum(example.label_path is not None for example in members)
        if labelled not in (0, len(members)):
            raise ValueError(f"split {split}: {labelled} of {len(members)} images have a label")
        if shards is not None and not 1 <= shards <= len(members):
            raise ValueError(f"--shards {shards}: split {split} has {len(members)} images")
    labels_of_images: dict[str, dict[str, Any]] = {
        split: {"image_labels": image_labels(dataset, root, split, examples[split]).labels}
        if has_annotations(dataset, root, split)
        else {}
        for split in splits
    }

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        sizes: dict[str, list[Size]] = {split: [] for split in splits}
        rows = {
            split: records_write.read_rows(dataset, examples[split], split, sizes[split])
            for split in splits
        }
        counts = {split: len(members) for split, members in examples.items()}
        try:
            complete, written = records_write.write(
                name or dataset.name.lower(), temporary, rows, counts, shards
            )
            index: dict[str, dict[str, Any]] = {
                split: {
                    "source": dataset.layout.source(split),
                    "labels": examples[split][0].label_path is not None,
                    "shards": written[split],
                    "names": [example.name for example in examples[split]],
                    "sizes": sizes[split],
                    **labels_of_images[split],
                }
                for split in splits
            }
            for split in splits:
                records_write.check_shards(complete, split, index[split])
            records_write.write_index(
                complete, {"format": FORMAT, "dataset": dataset.name, "splits": index}
            )
        except RuntimeError as error:  # ArrayRecord's: disk full, no permission
            raise RecordsError(f"cannot write {out}: {error}") from error
        os.rename(complete, out)
    return counts


def find_record(name: str, root: str | os.PathLike[str]) -> Dataset:
    """The dataset called `name`; "folder": a plain folder whose labels are any 8-bit ids."""
    if name != "folder":
        return BY_NAME[name]
    plain = folder(root, [str(i) for i in range(256)])
    splits = []
    for split, below in (("train", "train/"), ("val", "")):
        labels = f"{below}labels"
        has_labels = (Path(root) / labels).is_dir()
        part = Part(f"{below}images", labels if has_labels else None)
        splits.append((split, Split((part,))))
    layout = dataclasses.replace(plain.layout, splits=tuple(splits))
    return dataclasses.replace(plain, layout=layout)


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(
        "input_pipeline.records_build",
        "Build TFDS records (ArrayRecord) from a dataset's folder.",
        _EXAMPLES,
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        choices=(*BY_NAME, "folder"),
        help=f"{', '.join(BY_NAME)}; or folder: images/ and labels/ of split val, with "
        "those of split train in train/",
    )
    parser.add_argument(
        "--root", metavar="DIR", type=commands.given, required=True, help="the dataset's folder"
    )
    parser.add_argument(
        "--out", metavar="OUT", type=commands.given, required=True, help="the folder to make"
    )
    parser.add_argument(
        "--split", default="train,val", help="splits to build (default: %(default)s)"
    )
    parser.add_argument(
        "--shards", metavar="N", type=int, help="files per split (default: by size, up to 1 GiB)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(argv)
    return commands.exit_code(lambda: _run(args), interrupted="stopped; nothing was built")


def _run(args: argparse.Namespace) -> int:
    splits = list(dict.fromkeys(args.split.split(",")))
    dataset = find_record(args.name, args.root)
    counts = build(dataset, args.root, args.out, splits, name=args.name, shards=args.shards)
    print(f"{args.out}: {', '.join(f'{split} {count}' for split, count in counts.items())}")
    return 0


if __name__ == "__main__":
    # Raises SystemExit, so that the incomplete folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
