"""For each dataset that can be prepared: what its files must be, and what its labels are made from.

The numbers of pictures are the records'. The shares of pixels are no published numbers, only wide
bounds around what the papers say of border, background and unlabelled pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline import conversions, datasets
from input_pipeline.checks import Expected
from input_pipeline.conversions import Job
from input_pipeline.datasets import Dataset


@dataclass(frozen=True)
class Preparation:
    """What the command knows of a dataset.

    Attributes:
      expected: what `check` wants to see.
      table: raw ids -> labels; None: the labels are used as they are published.
      beside: how the names of raw maps end that lie beside the label files; None: they don't.
      apart: jobs for (root, source), where the raw maps have a folder of their own.
      places: where that folder may be, seen from the root, and what it must hold.
    """

    expected: Expected
    table: Callable[[], np.ndarray] | None = None
    beside: str | None = None
    apart: Callable[[Path, Path], list[Job]] | None = None
    places: tuple[tuple[str, ...], str] = ((), "")


def _expected(
    record: Dataset,
    splits: Sequence[str],
    *shares: tuple[int, float, float],
    source: str,
    raw: tuple[range, str] = (range(0), ""),
) -> Expected:
    """For these splits of the record, with the published numbers of pictures."""
    counts = []
    for name in splits:
        split = record.layout.split(name)
        assert split.count is not None
        counts.append((name, (split.count, *split.also)))
    return Expected(record, tuple(counts), shares, raw, source)


_VOC = "Unpack VOCtrainval_11-May-2012.tar; the root is its VOCdevkit/VOC2012."
_RAW_COCO = "COCO-Stuff's raw ids (0 to 181), not train ids"
_COCO = (
    "Unpack train2017.zip and val2017.zip in images/, stuffthingmaps_trainval2017.zip in "
    "annotations/; then --write makes the label files."
)
PREPARATIONS = {
    "voc": Preparation(
        _expected(
            datasets.VOC12_20, ("train", "val"), (0, 0.5, 0.9), (255, 0.01, 0.15), source=_VOC
        )
    ),
    "voc_aug": Preparation(
        # SBD's labels have no border: the share of 255 is that of the 1464 others and of val.
        _expected(
            datasets.VOC12_20,
            ("trainaug", "val"),
            (0, 0.5, 0.9),
            (255, 0.002, 0.15),
            source=f"{_VOC} SegmentationClassAug and aug.txt are made by --write from SBD "
            "(benchmark.tgz), unpacked beside VOC2012 or named by --source.",
        ),
        conversions.voc_table,
        apart=conversions.sbd_jobs,
        places=(
            tuple(
                f"{up}{name}"
                for up in ("", "../", "../../")
                for name in ("VOCaug/dataset", "benchmark_RELEASE/dataset")
            ),
            "cls",
        ),
    ),
    "context": Preparation(
        _expected(
            datasets.CONTEXT_59,
            ("train", "val"),
            (0, 0.02, 0.45),
            source="Unpack VOCtrainval_03-May-2010.tar; the root is its VOCdevkit/VOC2010. The "
            "labels and lists of SegmentationContext are made by MMSegmentation's "
            "pascal_context.py with the Detail API from trainval_merged.json. With the lists "
            "there, --write makes the labels from raw maps, <id>.mat or <id>.png, in trainval/ or "
            "the folder that --source names.",
            raw=(range(60, 460), "Pascal Context's raw ids (up to 459), not 0 to 59"),
        ),
        conversions.pascal_context_table,
        apart=conversions.pascal_context_jobs,
        places=(("trainval",), "."),
    ),
    "ade20k": Preparation(
        _expected(
            datasets.ADE20K,
            ("train", "val"),
            (0, 0.02, 0.25),
            source="Unpack ADEChallengeData2016.zip; the root is its ADEChallengeData2016.",
        )
    ),
    "cityscapes": Preparation(
        _expected(
            datasets.CITYSCAPES,
            ("train", "val"),
            (255, 0.03, 0.3),
            source="Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip in the root; "
            "then --write makes the *_labelTrainIds.png.",
            raw=(range(19, 34), "Cityscapes' label ids (0 to 33), not train ids"),
        ),
        conversions.cityscapes_table,
        beside="_gtFine_labelIds.png",
    ),
    "coco_stuff_27": Preparation(
        _expected(
            datasets.COCO_STUFF_27,
            ("train", "val"),
            (255, 0.005, 0.25),
            source=_COCO,
            raw=(range(27, 182), _RAW_COCO),
        ),
        conversions.coco_stuff_27_table,
        beside=".png",
    ),
    "coco_stuff_171": Preparation(
        _expected(
            datasets.COCO_STUFF_164K,
            ("train", "val"),
            (255, 0.005, 0.25),
            source=_COCO,
            raw=(range(171, 182), _RAW_COCO),
        ),
        conversions.coco_stuff_171_table,
        beside=".png",
    ),
}


def find_jobs(preparation: Preparation, root: Path, source: Path | None) -> list[Job]:
    """The raw maps that are there, and the label files that they become.

    Raises:
      ValueError: `source` isn't what it should be, or lists are missing.
    """
    if preparation.apart is None:
        if source is not None:
            raise ValueError("--source is for voc_aug and context; leave it away")
        if preparation.beside is None:
            return []
        layout = preparation.expected.record.layout
        parts = [p for name, _ in preparation.expected.counts for p in layout.split(name).parts]
        folders = [part.labels for part in parts if part.labels is not None]
        return conversions.renamed_jobs(root, folders, preparation.beside, layout.label_suffix)
    names, content = preparation.places
    usual = [root / name for name in names]
    found = [
        p for p in ([source, source / "dataset"] if source else usual) if (p / content).is_dir()
    ]
    if source is not None and not found:
        raise ValueError(f"--source {source} is no folder" + f" with {content}/" * (content != "."))
    return preparation.apart(root, found[0]) if found else []
