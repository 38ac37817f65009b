"""One frozen record per dataset, from which everything about it is derived.

Classes and label rules are those of MaskCLIP (mmsegmentation), ReCLIP, CLIP-ES and WTCLIP.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.datasets import layouts, records
from input_pipeline.datasets.class_sets import (
    Colour,
    class_set,
    coco_stuff_171_to_27,
    palette,
)
from input_pipeline.datasets.layout import Example, Layout, Part, Split


@dataclass(frozen=True)
class Dataset:
    """Classes, label rule and folder layout of a dataset.

    Attributes:
      name: for messages and result files.
      class_names: in label order.
      prompts: strings for the templates, in label order. A background class has none: then
        `len(prompts) == len(class_names) - 1` and prompt i is that of label i + 1.
      palette: RGB per class.
      layout: folders, splits and file names.
      background: label 0 is a background class, predicted and scored like the others.
      reduce_zero_label: in the files 0 means "no class" and class i is stored as i + 1.
      ignore_label: label of ignored pixels, in the files and in `read_label`'s result.
      unseen: labels held out in zero-shot training.
      image_class_labels: the label of each class that image labels name, where those are other
        classes than `foreground`; (): they are the same.
      longest_px: longest side of images as they are read, larger ones and their label maps are
        shrunk; None: they are not.
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
    image_class_labels: tuple[int, ...] = ()
    longest_px: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    @property
    def foreground(self) -> tuple[str, ...]:
        """Names of the classes without the background; image label i is the i-th of these."""
        return self.class_names[int(self.background) :]

    def index(
        self, root: str | os.PathLike[str], split: str = "val", *, labels: bool = True
    ) -> list[Example]:
        """The split's examples in their published order.

        Logs a warning if the number of images is not the published one.

        Args:
          root: the dataset's own folder, the folder of datasets that contains one of
            `layout.folders`, or a folder of records (see `records`).
          labels: False: label maps are not required, and the examples have none.

        Raises:
          ValueError: unknown split, or an image is listed twice.
          FileNotFoundError: root, split list, images or labels are missing; the message names the
            path and the expected folder layout.
        """
        stored = records.find_records(root, self.layout.folders)
        if stored is not None:
            examples = records.index_records(self.layout, stored, split)
            if not labels:
                examples = [dataclasses.replace(each, label_path=None) for each in examples]
        else:
            examples = self.layout.index(root, split, labels=labels)
        self.layout.warn_of_count(root, split, len(examples))
        return examples


def folder(
    root: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    colours: Sequence[Colour] | None = None,
    background: bool = False,
    reduce_zero_label: bool = False,
    labels: str | None = "labels",
) -> Dataset:
    """A plain folder: images in `images/`, label PNGs of the same stem in `labels/`; split "val".

    Args:
      class_names: in label order; also the prompts, except the background's.
      colours: RGB per class; None: those of `palette`.
      background: label 0 is a background class; see `Dataset`.
      reduce_zero_label: 0 in the label maps means "no class"; see `Dataset`.
      labels: folder of the label maps below `root`; None: there are none.

    Returns:
      A record that remembers `root`: its `index` takes `root` again, or "".

    Raises:
      ValueError: no class names, a string in place of them, or a name that is blank, given twice
        or several names in one.
    """
    if isinstance(class_names, str) or not class_names:
        raise ValueError(
            f"class_names is {class_names!r}; give a sequence of at least one name, "
            f'e.g. ("cat", "dog").'
        )
    for name in class_names:
        if not isinstance(name, str) or not name.strip() or "," in name:
            raise ValueError(
                f"class_names has the name {name!r}; give each class a string of its own without "
                f"commas, on the command line as \"('cat','dog')\"."
            )
    if len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if list(class_names).count(name) > 1)
        raise ValueError(f"class_names has {twice!r} twice; give each class another name.")
    return Dataset(
        name=Path(root).resolve().name,
        class_names=tuple(class_names),
        prompts=tuple(class_names[int(background) :]),
        palette=palette(len(class_names)) if colours is None else tuple(colours),
        layout=Layout(
            (("val", Split((Part("images", labels),))),),
            (os.fspath(root) if records.is_address(root) else str(Path(root).resolve()),),
            image_suffix="",
        ),
        background=background,
        reduce_zero_label=reduce_zero_label,
    )


def _record(
    name: str,
    classes: str,
    layout: Layout,
    *,
    background: bool = False,
    reduce_zero_label: bool = False,
    image_class_labels: tuple[int, ...] = (),
) -> Dataset:
    entry = class_set(classes)
    return Dataset(
        name=name,
        class_names=entry.names,
        prompts=entry.prompts,
        palette=entry.palette,
        layout=layout,
        background=background,
        reduce_zero_label=reduce_zero_label,
        unseen=entry.unseen,
        image_class_labels=image_class_labels,
    )


VOC07_20 = _record("VOC07_20", "voc", layouts.VOC07)
VOC12_20 = _record("VOC12_20", "voc", layouts.VOC12, reduce_zero_label=True)
VOC12_21 = _record("VOC12_21", "voc21", layouts.VOC12, background=True)
VOC12_AUG = _record("VOC12_AUG", "voc21", layouts.VOC_AUG, background=True)
CONTEXT_59 = _record("CONTEXT_59", "context", layouts.CONTEXT, reduce_zero_label=True)
CONTEXT_60 = _record("CONTEXT_60", "context60", layouts.CONTEXT, background=True)
COCO14_81 = _record(
    "COCO14_81",
    "coco81",
    layouts.COCO14,
    background=True,
)
COCO17_81 = _record(
    "COCO17_81",
    "coco81",
    layouts.COCO17,
    background=True,
)
COD_65 = _record("COD_65", "cod65", layouts.COD, background=True)
COCO_STUFF_164K = _record("COCO_STUFF_164K", "stuff", layouts.COCO_STUFF)
COCO_STUFF_27 = _record(
    "COCO_STUFF_27",
    "stuff27",
    layouts.COCO_STUFF_27,
    # CLIP-ES and TagCLIP name the 171 classes in its images.
    image_class_labels=tuple(coco_stuff_171_to_27().tolist()),
)
# Made from COCO-Stuff's maps, so that crowds and overlaps differ from COCO17_81's.
COCO_OBJECT = _record("COCO_OBJECT", "coco81", layouts.COCO_OBJECT, background=True)
ADE20K = _record("ADE20K", "ade", layouts.ADE, reduce_zero_label=True)
CITYSCAPES = _record("CITYSCAPES", "city", layouts.CITYSCAPES)

BY_NAME = {
    record.name.lower(): record
    for record in (
        *(VOC07_20, VOC12_20, VOC12_21, VOC12_AUG, CONTEXT_59, CONTEXT_60),
        *(COCO14_81, COCO17_81, COD_65, COCO_STUFF_164K, COCO_STUFF_27, COCO_OBJECT),
        *(ADE20K, CITYSCAPES),
    )
}
