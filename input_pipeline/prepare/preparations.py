"""Requirements on each dataset that can be prepared, and sources of its label files.

Numbers of images are those of the records. Shares of pixels are not published numbers but wide
bounds around what the papers say about border, background and unlabelled pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.datasets.catalog import (
    ADE20K,
    CITYSCAPES,
    COCO14_81,
    COCO17_81,
    COCO_OBJECT,
    COCO_STUFF_27,
    COCO_STUFF_164K,
    CONTEXT_59,
    VOC12_20,
    VOC12_AUG,
    Dataset,
)
from input_pipeline.datasets.coco import draw
from input_pipeline.prepare import conversions
from input_pipeline.prepare.coco_jobs import coco_jobs
from input_pipeline.prepare.conversions import Job, LabelOf, by_table
from input_pipeline.prepare.expected import Expected

Jobs = Callable[[Path, Path | None], list[Job]]


@dataclass(frozen=True)
class Preparation:
    """How the command prepares a dataset.

    Attributes:
      expected: requirements for `check`.
      jobs: (root, --source) -> the label files to make; None: labels are used as published.
      label_of: returns the function that makes a label map from the source of a job.
      takes_source: whether `jobs` uses --source.
      remedy: for sources that no label map can be made from.
    """

    expected: Expected
    jobs: Jobs | None = None
    label_of: Callable[[], LabelOf] | None = None
    takes_source: bool = False
    remedy: str = "Unpack these again; then run with --write again to resume."


def _expected(
    record: Dataset,
    splits: Sequence[str],
    *shares: tuple[int, float, float],
    source: str,
    raw: tuple[range, str] = (range(0), ""),
    lists: tuple[tuple[str, str], ...] = (),
    images_per_class: tuple[tuple[str, tuple[int, ...]], ...] = (),
    image_labels: bool = False,
) -> Expected:
    """Requirements on these splits of the record, with the published numbers of images."""
    counts = []
    for name in splits:
        split = record.layout.split(name)
        assert split.count is not None
        counts.append((name, (split.count, *split.also)))
    return Expected(
        record, tuple(counts), shares, raw, source, lists, images_per_class, image_labels
    )


def _same_folder(record: Dataset, raw_suffix: str) -> Jobs:
    """Jobs for raw maps in the folders of the label files, which differ in their suffixes."""
    parts = [part for _, split in record.layout.splits for part in split.parts]
    folders = dict.fromkeys(part.labels for part in parts if part.labels is not None)

    def jobs(root: Path, _: Path | None) -> list[Job]:
        suffix = record.layout.label_suffix
        return conversions.renamed_jobs(root, folders, raw_suffix, suffix)

    return jobs


def _separate(make: Callable[[Path, Path], list[Job]], content: str, *usual: str) -> Jobs:
    """Jobs for raw maps in a separate folder, given by --source or in a usual place.

    Args:
      make: (root, folder of raw maps) -> jobs.
      content: a folder that the folder of raw maps must contain; ".": any.
      usual: usual places, relative to the root.
    """

    def jobs(root: Path, source: Path | None) -> list[Job]:
        places = [root / name for name in usual] if source is None else [source, source / "dataset"]
        existing = [place for place in places if (place / content).is_dir()]
        if source is not None and not existing:
            containing = f" with {content}/" if content != "." else ""
            raise ValueError(f"--source {source} is not a folder{containing}")
        return make(root, existing[0]) if existing else []

    return jobs


def _coco_stuff(record: Dataset, classes: int, table: Callable[[], np.ndarray]) -> Preparation:
    expected = _expected(
        record,
        ("train", "val"),
        (255, 0.005, 0.25),
        source="Unpack train2017.zip and val2017.zip in images/, stuffthingmaps_trainval2017.zip "
        "in annotations/; then --write makes the label files.",
        raw=(range(classes, 182), "COCO-Stuff's raw ids (0 to 181), not train ids"),
    )
    return Preparation(expected, _same_folder(record, ".png"), lambda: by_table(table()))


def _coco(
    record: Dataset,
    splits: tuple[str, ...],
    archives: str,
    lists: tuple[tuple[str, str], ...] = (),
) -> Preparation:
    expected = _expected(
        record,
        splits,
        (0, 0.4, 0.9),
        (255, 0.0, 0.1),  # 0 in the masks that --write makes
        source=f"Unpack {archives} in the root; then --write makes the lists in ImageSets/ and the "
        "labels in SegmentationClass/.",
        raw=(range(81, 91), "COCO's category ids (1 to 90), not labels 0 to 80"),
        image_labels=True,
        lists=lists,
    )
    # Label maps are made for both splits if their annotations exist.
    return Preparation(
        expected,
        lambda root, _: coco_jobs(record, root, ("train", "val")),
        lambda: draw,
        remedy="Mend or drop what is named in instances_*.json; then run with --write again to "
        "resume.",
    )


_VOC = "Unpack VOCtrainval_11-May-2012.tar; the root is its VOCdevkit/VOC2012."
# SHA-1 of the sorted names, joined by newlines.
_VOC_LISTS = {
    "train": "6ed871ae2d09c26453d4cc55d18d10004d7e5441",
    "val": "93298139809de6958dab81b492b010f3b20ce818",
    "train_aug": "5b12fb32d8deda0ca67d25b97423a0da3d494534",
}
_COCO14_LISTS = (
    ("train", "9449ed5417b4bb9aac2d6b6e04da4f8f5841dc51"),
    ("val", "32376b858dcfc39051a659108af48ab9f7697095"),
)
# Number of label maps that contain each of the 20 classes: VOC's own statistics.
_VOC_IMAGES_PER_CLASS = {
    "train": (
        *(88, 65, 105, 78, 87, 78, 128, 131, 148, 64),
        *(82, 121, 68, 81, 442, 82, 63, 93, 83, 84),
    ),
    "val": (
        *(90, 79, 103, 72, 96, 74, 127, 119, 123, 71),
        *(75, 128, 79, 76, 445, 85, 57, 90, 84, 74),
    ),
}
PREPARATIONS = {
    "voc": Preparation(
        _expected(
            VOC12_20,
            ("train", "val"),
            (0, 0.5, 0.9),
            (255, 0.01, 0.15),
            source=_VOC,
            lists=tuple((split, _VOC_LISTS[split]) for split in ("train", "val")),
            images_per_class=tuple(_VOC_IMAGES_PER_CLASS.items()),
        )
    ),
    "voc_aug": Preparation(
        # SBD's labels have no border: only VOC's own 1464 and val contain 255.
        _expected(
            VOC12_AUG,
            ("train_aug", "val"),
            (0, 0.5, 0.9),
            (255, 0.002, 0.15),
            source=f"{_VOC} SegmentationClassAug, aug.txt and train_aug.txt are made by --write "
            "from VOC's labels and SBD (benchmark.tgz), unpacked beside VOC2012 or named by "
            "--source.",
            lists=tuple((split, _VOC_LISTS[split]) for split in ("train_aug", "val")),
            images_per_class=(("val", _VOC_IMAGES_PER_CLASS["val"]),),
            image_labels=True,
        ),
        _separate(
            conversions.sbd_jobs,
            "cls",
            *(
                f"{up}{name}"
                for up in ("", "../", "../../")
                for name in ("VOCaug/dataset", "benchmark_RELEASE/dataset")
            ),
        ),
        lambda: by_table(conversions.voc_table()),
        takes_source=True,
    ),
    "context": Preparation(
        _expected(
            CONTEXT_59,
            ("train", "val"),
            (0, 0.02, 0.45),
            source="Unpack VOCtrainval_03-May-2010.tar; the root is its VOCdevkit/VOC2010. The "
            "labels and lists of SegmentationContext are made by MMSegmentation's "
            "pascal_context.py with the Detail API from trainval_merged.json. With the lists "
            "there, --write makes the labels from raw maps, <id>.mat or <id>.png, in trainval/ or "
            "the folder that --source names.",
            raw=(range(60, 460), "Pascal Context's raw ids (up to 459), not 0 to 59"),
        ),
        _separate(conversions.pascal_context_jobs, ".", "trainval"),
        lambda: by_table(conversions.pascal_context_table()),
        takes_source=True,
    ),
    "ade20k": Preparation(
        _expected(
            ADE20K,
            ("train", "val"),
            (0, 0.02, 0.25),
            source="Unpack ADEChallengeData2016.zip; the root is its ADEChallengeData2016.",
        )
    ),
    "cityscapes": Preparation(
        _expected(
            CITYSCAPES,
            ("train", "val"),
            (255, 0.03, 0.3),
            source="Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip in the root; "
            "then --write makes the *_labelTrainIds.png.",
            raw=(range(19, 34), "Cityscapes' label ids (0 to 33), not train ids"),
        ),
        _same_folder(CITYSCAPES, "_gtFine_labelIds.png"),
        lambda: by_table(conversions.cityscapes_table()),
    ),
    "coco_stuff_27": _coco_stuff(COCO_STUFF_27, 27, conversions.coco_stuff_27_table),
    "coco_stuff_171": _coco_stuff(COCO_STUFF_164K, 171, conversions.coco_stuff_171_table),
    "coco14": _coco(
        COCO14_81,
        ("train", "val"),
        "train2014.zip, val2014.zip and annotations_trainval2014.zip",
        lists=_COCO14_LISTS,
    ),
    "coco_object": Preparation(
        _expected(
            COCO_OBJECT,
            ("val",),
            (0, 0.4, 0.9),
            (255, 0.0, 0.0),  # nothing is ignored: such labels are of another rule
            source="Unpack val2017.zip in images/, stuffthingmaps_trainval2017.zip in "
            "annotations/; then --write makes the label files.",
            raw=(range(81, 182), "COCO-Stuff's raw ids (0 to 181), not labels 0 to 80"),
        ),
        _same_folder(COCO_OBJECT, ".png"),
        lambda: by_table(conversions.coco_object_table()),
    ),
    # TagCLIP needs only val.
    "coco17": _coco(COCO17_81, ("val",), "val2017.zip and annotations_trainval2017.zip"),
}
