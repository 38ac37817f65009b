"""Where what a row needs is had: released weights and datasets, their sizes and addresses."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from input_pipeline.prepare.preparations import PREPARATIONS
from weights_convert import CheckpointError
from weights_convert.named.find import find_cached
from weights_convert.named.names import BY_FILE

# (size, address); the size is that of the download, and the address may be words.
Place = tuple[str, str]


class Released(NamedTuple):
    """A released file.

    Attributes:
      place: where it is had.
      sha256: how its checksum begins; "": that is not published.
      name: what `python -m weights_convert download` calls it; "": it does not know it.
    """

    place: Place
    sha256: str = ""
    name: str = ""


# Sizes that no publisher states, by the number of parameters.
_ABOUT = {
    "RN50x16.pt": "about 660 MB",
    "resnet50_v1c-2cccc1ad.pth": "about 100 MB",
    "resnet101_v1c-e67eebb6.pth": "about 180 MB",
}
_DEEPLAB, _ADVCAM = "kazuto1011/deeplab-pytorch on GitHub", "AdvCAM's repository on GitHub"
# Released files by their names.
WEIGHTS = {
    file: Released(
        (f"{known.size / 1e6:.0f} MB" if known.size else _ABOUT.get(file, ""), known.address),
        known.sha256,
        known.name,
    )
    for file, known in BY_FILE.items()
} | {
    "deeplabv1_resnet101-coco.pth": Released(
        ("about 170 MB", f"{_DEEPLAB}, whose convert.py makes it of init.caffemodel")
    ),
    "resnet101_imagenet.pth": Released(
        ("about 170 MB", f"{_ADVCAM}: its ResNet-101 of ImageNet; give it this name")
    ),
}


def cached(file: str) -> Path | None:
    """A released file in the cache of downloads; None: it is not there."""
    name = WEIGHTS[file].name
    if not name:
        return None
    try:
        return find_cached(name)
    except CheckpointError:  # damaged, or no place for a cache
        return None


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"
_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
_CITY = "https://www.cityscapes-dataset.com/downloads/ (after registration)"
_ARCHIVES: dict[str, Place] = {
    "VOC2007 test": ("451 MB", f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar"),
    "VOC2010": ("1.3 GB", f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar"),
    "Context": ("590 MB", "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"),
    "VOC2012": ("2.0 GB", f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar"),
    "SBD": (
        "1.4 GB",
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
        "benchmark.tgz",
    ),
    "train2014": ("13.5 GB", f"{_COCO}/zips/train2014.zip"),
    "val2014": ("6.6 GB", f"{_COCO}/zips/val2014.zip"),
    "annotations2014": ("253 MB", f"{_COCO}/annotations/annotations_trainval2014.zip"),
    "train2017": ("19.3 GB", f"{_COCO}/zips/train2017.zip"),
    "val2017": ("816 MB", f"{_COCO}/zips/val2017.zip"),
    "annotations2017": ("253 MB", f"{_COCO}/annotations/annotations_trainval2017.zip"),
    "stuff": ("659 MB", f"{_STUFF}/stuffthingmaps_trainval2017.zip"),
    "ADE20K": (
        "1.0 GB",
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    ),
    "leftImg8bit": ("11 GB", f"leftImg8bit_trainvaltest.zip: {_CITY}"),
    "gtFine": ("241 MB", f"gtFine_trainvaltest.zip: {_CITY}"),
}


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset is had.

    Attributes:
      archives: what is downloaded.
      prepare: its name for `python -m input_pipeline.prepare`; "": it is used as unpacked.
      how: what is done with the archives.
    """

    archives: tuple[Place, ...]
    prepare: str
    how: str

    def command(self, root: Path) -> str:
        """What makes the label files in the dataset's own folder, and checks it; "": nothing."""
        if not self.prepare:
            return ""
        write = " --write" if PREPARATIONS[self.prepare].jobs else ""
        quoted = shlex.quote(str(root))
        return f"python -m input_pipeline.prepare {self.prepare} --root {quoted}{write}"


def dataset_source(name: str, splits: Collection[str]) -> DatasetSource:
    """Where these splits of the dataset that configs call `name` are had."""
    archives, prepare = _DATASETS["voc12_aug" if "trainaug" in splits else name]
    if not any(split.startswith("train") for split in splits):
        archives = tuple(each for each in archives if not each.startswith("train"))
    how = PREPARATIONS[prepare].expected.source if prepare else _UNPACKED[name]
    if "tagclip_val" in splits:
        how += " imageset/cocostuff/val.txt is in linyq2117/TagCLIP on GitHub."
    return DatasetSource(tuple(_ARCHIVES[each] for each in archives), prepare, how)


# The name in configs -> archives, and the name for `prepare`.
_DATASETS: dict[str, tuple[tuple[str, ...], str]] = {
    "voc07_20": (("VOC2007 test",), ""),
    "voc12_20": (("VOC2012",), "voc"),
    "voc12_21": (("VOC2012",), "voc"),
    "voc12_aug": (("VOC2012", "SBD"), "voc_aug"),
    "context_59": (("VOC2010", "Context"), "context"),
    "context_60": (("VOC2010", "Context"), "context"),
    "coco14_81": (("train2014", "val2014", "annotations2014"), "coco14"),
    "coco17_81": (("val2017", "annotations2017"), "coco17"),
    "coco_stuff_164k": (("train2017", "val2017", "stuff"), "coco_stuff_171"),
    "coco_stuff_27": (("train2017", "val2017", "stuff"), "coco_stuff_27"),
    "coco_object": (("val2017", "stuff"), "coco_object"),
    "ade20k": (("ADE20K",), "ade20k"),
    "cityscapes": (("leftImg8bit", "gtFine"), "cityscapes"),
}
_UNPACKED = {"voc07_20": "Unpack VOCtest_06-Nov-2007.tar; the root is its VOCdevkit/VOC2007."}
