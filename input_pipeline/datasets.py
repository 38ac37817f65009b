"""One frozen record per dataset, from which everything about it is derived.

Folder layouts, splits and label rules are those of MaskCLIP's (mmsegmentation's) dataset classes
and of ReCLIP's lists.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline import records
from input_pipeline.class_sets import Colour, class_set, palette
from input_pipeline.layout import Example, Layout, Part, Split


@dataclass(frozen=True)
class Dataset:
    """What a dataset is: classes, label rule, folder layout.

    Attributes:
      name: for messages and result files.
      class_names: in label order.
      prompts: strings for the templates, in label order. A background class has none: then
        `len(prompts) == len(class_names) - 1` and prompt i belongs to label i + 1.
      palette: RGB per class.
      layout: where the files lie.
      background: label 0 is a background class, predicted and scored like the others.
      reduce_zero_label: in the files 0 means "no class" and class i is stored as i + 1.
      ignore_label: label of pixels that are not scored, in the files and in `read_label`'s result.
      unseen: label indices held out in zero-shot training.
    """

    name: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    palette: tuple[Colour, ...]
    layout: Layout
    background: bool = False
    reduce_zero_label: bool = False
    ignore_label: int = 255
    unseen: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """How many labels there are, background included."""
        return len(self.class_names)

    def index(self, root: str | os.PathLike[str], split: str = "val") -> list[Example]:
        """The split's examples in their published order.

        `root` is the dataset's own folder, the folder of datasets that holds one of
        `layout.folders`, or a folder of records (see `input_pipeline.records`). A number of
        pictures other than the published one is logged as a warning.

        Raises:
          ValueError: unknown split, or the same picture twice.
          FileNotFoundError: root, split list, pictures or labels are missing; the message names
            the path and the folder layout that was looked for.
        """
        stored = records.find(root, self.layout.folders)
        if stored is not None:
            examples = records.index(self.layout, stored, split)
        else:
            examples = self.layout.index(root, split)
        self.layout.warn_of_count(root, split, len(examples))
        return examples


def folder(
    root: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    background: bool = False,
    reduce_zero_label: bool = False,
    images: str = "images",
    labels: str | None = "labels",
    label_suffix: str = ".png",
) -> Dataset:
    """A plain folder: pictures in `images/`, label PNGs of the same stem in `labels/`; split "val".

    `labels=None` for pictures without labels. The prompts default to the class names (without the
    background's). The record remembers `root`: `index(root)` takes it again, or "".
    """
    if isinstance(class_names, str) or not class_names:
        raise ValueError(
            f"class_names is {class_names!r}; give a sequence of at least one name, "
            f'e.g. ("cat", "dog").'
        )
    return Dataset(
        name=Path(root).resolve().name,
        class_names=tuple(class_names),
        prompts=tuple(class_names[1 if background else 0 :] if prompts is None else prompts),
        palette=palette(len(class_names)) if colours is None else tuple(colours),
        layout=Layout(
            (("val", Split((Part(images, labels),))),),
            (os.fspath(root) if records.is_address(root) else str(Path(root).resolve()),),
            "",
            label_suffix,
        ),
        background=background,
        reduce_zero_label=reduce_zero_label,
    )


def image_folder(
    root: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> Dataset:
    """A folder of pictures (and its sub-folders) without labels, to be segmented into classes."""
    return folder(root, class_names, prompts=prompts, colours=colours, images=".", labels=None)


def _record(
    name: str,
    classes: str,
    layout: Layout,
    *,
    background: bool = False,
    reduce_zero_label: bool = False,
) -> Dataset:
    known = class_set(classes)
    return Dataset(
        name=name,
        class_names=known.names,
        prompts=known.prompts,
        palette=known.palette,
        layout=layout,
        background=background,
        reduce_zero_label=reduce_zero_label,
        unseen=known.unseen,
    )


def _scan(
    images: str,
    labels: str,
    train: tuple[str, int],
    val: tuple[str, int],
    stems: str | None = None,
) -> tuple[tuple[str, Split], ...]:
    """Splits that are whole folders; `{}` in the paths stands for the split's own folder.

    `stems` is a list that may be there instead.
    """
    splits = []
    for split, (name, count) in (("train", train), ("val", val)):
        listed = None if stems is None else stems.format(name)
        part = Part(images.format(name), labels.format(name), may_list=listed)
        splits.append((split, Split((part,), count)))
    return tuple(splits)


def _listed(labels: str, stems: str) -> Part:
    return Part("JPEGImages", labels, f"ImageSets/{stems}.txt")


_VOC_TRAIN = _listed("SegmentationClass", "Segmentation/train")
_VOC_AUG = _listed("SegmentationClassAug", "Segmentation/aug")
_VOC_VAL = _listed("SegmentationClass", "Segmentation/val")
_VOC = Layout(
    (
        ("train", Split((_VOC_TRAIN,), 1464)),
        ("trainaug", Split((_VOC_TRAIN, _VOC_AUG), 10582)),
        ("val", Split((_VOC_VAL,), 1449)),
    ),
    ("VOCdevkit/VOC2012",),
)
_CONTEXT_TRAIN = _listed("SegmentationClassContext", "SegmentationContext/train")
_CONTEXT_VAL = _listed("SegmentationClassContext", "SegmentationContext/val")
# Two lists are in use: the API's (MaskCLIP), and one without three pictures (ReCLIP).
_CONTEXT = Layout(
    (
        ("train", Split((_CONTEXT_TRAIN,), 4998, (4996,))),
        ("val", Split((_CONTEXT_VAL,), 5105, (5104,))),
    ),
    ("VOCdevkit/VOC2010",),
)
_COCO = _scan("images/{}", "annotations/{}", ("train2017", 118287), ("val2017", 5000))
_COCO_STUFF = Layout(_COCO, ("coco_stuff164k",), label_suffix="_labelTrainIds.png")
_COCO_STUFF_27 = Layout(_COCO, ("coco_stuff164k",), label_suffix="_27labelTrainIds.png")
_ADE = Layout(
    _scan("images/{}", "annotations/{}", ("training", 20210), ("validation", 2000)),
    ("ade/ADEChallengeData2016", "ADEChallengeData2016"),
)
# train.txt and val.txt, of lines like aachen/aachen_000000_000019, are ReCLIP's.
_CITYSCAPES = Layout(
    _scan("leftImg8bit/{}", "gtFine/{}", ("train", 2975), ("val", 500), "{}.txt"),
    ("cityscapes", "Cityscapes"),
    image_suffix="_leftImg8bit.png",
    label_suffix="_gtFine_labelTrainIds.png",
)

VOC12_20 = _record("VOC12_20", "voc", _VOC, reduce_zero_label=True)
VOC12_21 = _record("VOC12_21", "voc21", _VOC, background=True)
CONTEXT_59 = _record("CONTEXT_59", "context", _CONTEXT, reduce_zero_label=True)
CONTEXT_60 = _record("CONTEXT_60", "context60", _CONTEXT, background=True)
COCO_STUFF_164K = _record("COCO_STUFF_164K", "stuff", _COCO_STUFF)
COCO_STUFF_27 = _record("COCO_STUFF_27", "stuff27", _COCO_STUFF_27)
ADE20K = _record("ADE20K", "ade", _ADE, reduce_zero_label=True)
CITYSCAPES = _record("CITYSCAPES", "city", _CITYSCAPES)
