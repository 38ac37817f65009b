"""One frozen record per dataset, from which everything about it is derived, and its file index.

Folder layouts, splits and label rules are those of MaskCLIP's (mmsegmentation's) dataset classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.class_sets import Colour, class_set, palette

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_MISSING_SHOWN = 3


@dataclass(frozen=True)
class Example:
    """One picture: its name (path below the image folder, no suffix) and its files."""

    name: str
    image_path: Path
    label_path: Path | None


@dataclass(frozen=True)
class Part:
    """A piece of a split: folders below the root, and a list of stems or None for a scan."""

    images: str
    labels: str | None
    stems: str | None = None


@dataclass(frozen=True)
class Split:
    """Parts in their published order, and how many pictures they hold together."""

    parts: tuple[Part, ...]
    count: int | None = None


@dataclass(frozen=True)
class Dataset:
    """What a dataset is: classes, label rule, folder layout.

    Attributes:
      name: for messages and result files.
      class_names: in label order.
      prompts: strings for the templates, in label order. A background class has none: then
        `len(prompts) == len(class_names) - 1` and prompt i belongs to label i + 1.
      palette: RGB per class.
      background: label 0 is a background class, predicted and scored like the others.
      reduce_zero_label: in the files 0 means "no class" and class i is stored as i + 1.
      ignore_label: label of pixels that are not scored, in the files and in `read_label`'s result.
      unseen: label indices held out in zero-shot training.
      folder: where the root usually lies below a folder of datasets.
      splits: name -> Split, as pairs so that the record stays hashable.
      image_suffix: one suffix, or "" for any picture format.
      label_suffix: replaces `image_suffix` in the label file's name.
    """

    name: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    palette: tuple[Colour, ...]
    splits: tuple[tuple[str, Split], ...]
    background: bool = False
    reduce_zero_label: bool = False
    ignore_label: int = 255
    unseen: tuple[int, ...] = ()
    folder: str = ""
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"

    @property
    def num_classes(self) -> int:
        """How many labels there are, background included."""
        return len(self.class_names)

    def index(self, root: str | os.PathLike[str], split: str = "val") -> list[Example]:
        """The split's examples in their published order.

        `root` is the dataset's own folder, or the folder of datasets that holds `self.folder`.
        A number of pictures other than the published one is logged as a warning.

        Raises:
          ValueError: unknown split, or the same picture twice.
          FileNotFoundError: root, split list, pictures or labels are missing; the message names
            the path and the folder layout that was looked for.
        """
        splits = dict(self.splits)
        if split not in splits:
            raise ValueError(f"{self.name} has no split {split!r}; it has: {', '.join(splits)}.")
        below = Path(root) / self.folder
        root = below if below.is_dir() else Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder. {self._layout(split)}")
        examples: list[Example] = []
        for part in splits[split].parts:
            examples += self._part(root, part, split)
        names = {example.name for example in examples}
        if len(names) != len(examples):
            raise ValueError(
                f"{self.name} {split}: {len(examples) - len(names)} names occur more than once in "
                f"the split's lists; each picture may be counted once."
            )
        expected = splits[split].count
        if expected is not None and len(examples) != expected:
            logging.getLogger(__name__).warning(
                "%s %s: found %d pictures, the published split has %d; scores are not comparable.",
                *(self.name, split, len(examples), expected),
            )
        return examples

    def _part(self, root: Path, part: Part, split: str) -> list[Example]:
        images = self._listing(root / part.images, split)
        if part.stems is None:
            files = sorted(file for file in images if self._is_image(file))
            stems = [self._stem(file) for file in files]
            if len(set(stems)) != len(stems):  # a.jpg beside a.png: keep both, told apart
                stems = [s if stems.count(s) == 1 else f for s, f in zip(stems, files, strict=True)]
        else:
            stems = self._stems(root / part.stems, split)
            files = [stem + self.image_suffix for stem in stems]
            self._require(images, files, root / part.images, split)
        if not files:
            kind = f"*{self.image_suffix}" if self.image_suffix else "pictures"
            raise FileNotFoundError(f"No {kind} in {root / part.images}. {self._layout(split)}")
        if part.labels is None:
            return [
                Example(stem, root / part.images / file, None)
                for stem, file in zip(stems, files, strict=True)
            ]
        labels = [self._stem(file) + self.label_suffix for file in files]
        self._require(self._listing(root / part.labels, split), labels, root / part.labels, split)
        return [
            Example(stem, root / part.images / file, root / part.labels / label)
            for stem, file, label in zip(stems, files, labels, strict=True)
        ]

    def _is_image(self, file: str) -> bool:
        lower = file.lower()
        return lower.endswith(self.image_suffix if self.image_suffix else _PICTURES)

    def _stem(self, file: str) -> str:
        suffix = self.image_suffix or os.path.splitext(file)[1]
        return file[: len(file) - len(suffix)]

    def _stems(self, path: Path, split: str) -> list[str]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise FileNotFoundError(f"No split list {path}. {self._layout(split)}") from error
        # VOC's per-class lists carry a second column; only the stem counts.
        return [line.split()[0] for line in lines if line.strip()]

    def _listing(self, folder: Path, split: str) -> set[str]:
        """Every file below `folder`, relative, hidden ones left out. One walk, not one stat each."""
        if not folder.is_dir():
            raise FileNotFoundError(f"No folder {folder}. {self._layout(split)}")
        found: set[str] = set()
        for where, folders, files in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            prefix = Path(where).relative_to(folder).as_posix()
            prefix = "" if prefix == "." else prefix + "/"
            found.update(prefix + name for name in files if not name.startswith("."))
        return found

    def _require(self, found: set[str], wanted: Sequence[str], folder: Path, split: str) -> None:
        missing = [name for name in wanted if name not in found]
        if missing:
            shown = ", ".join(missing[:_MISSING_SHOWN]) + (", ..." if len(missing) > 3 else "")
            raise FileNotFoundError(
                f"{len(missing)} of {len(wanted)} files are missing in {folder}: {shown}. "
                f"{self._layout(split)}"
            )

    def _layout(self, split: str) -> str:
        lines = []
        for part in dict(self.splits)[split].parts:
            lines.append(f"{part.images}/*{self.image_suffix}")
            if part.labels is not None:
                lines.append(f"{part.labels}/*{self.label_suffix}")
            if part.stems is not None:
                lines.append(part.stems)
        where = f" (usually {self.folder})" if self.folder else ""
        return f"{self.name} {split} needs, below its root{where}: {', '.join(lines)}."


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

    `labels=None` for pictures without labels. The prompts default to the class names. The record
    remembers `root`; `index("")` finds it.
    """
    _check_names(class_names)
    foreground = tuple(class_names)[1 if background else 0 :]
    return Dataset(
        name=Path(root).resolve().name,
        class_names=tuple(class_names),
        prompts=foreground if prompts is None else tuple(prompts),
        palette=palette(len(class_names)) if colours is None else tuple(colours),
        splits=(("val", Split((Part(images, labels),))),),
        background=background,
        reduce_zero_label=reduce_zero_label,
        folder=str(Path(root).resolve()),
        image_suffix="",
        label_suffix=label_suffix,
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


def _check_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str) or not class_names:
        raise ValueError(
            f"class_names is {class_names!r}; give a sequence of at least one name, "
            f'e.g. ("cat", "dog").'
        )


def _scan(images: str, labels: str, counts: tuple[tuple[str, int], ...]) -> tuple:
    """Splits that are the files of a folder; `{}` in the folder names stands for the split."""
    return tuple(
        (split, Split((Part(images.format(split), labels.format(split)),), count))
        for split, count in counts
    )


_VOC_LISTS = "ImageSets/Segmentation"
_VOC_TRAIN = Part("JPEGImages", "SegmentationClass", f"{_VOC_LISTS}/train.txt")
_VOC_AUG = Part("JPEGImages", "SegmentationClassAug", f"{_VOC_LISTS}/aug.txt")
_VOC_VAL = Part("JPEGImages", "SegmentationClass", f"{_VOC_LISTS}/val.txt")
_VOC_SPLITS = (
    ("train", Split((_VOC_TRAIN,), 1464)),
    ("trainaug", Split((_VOC_TRAIN, _VOC_AUG), 10582)),
    ("val", Split((_VOC_VAL,), 1449)),
)
_CONTEXT_SPLITS = tuple(
    (
        split,
        Split(
            (
                Part(
                    "JPEGImages",
                    "SegmentationClassContext",
                    f"ImageSets/SegmentationContext/{split}.txt",
                ),
            ),
            count,
        ),
    )
    for split, count in (("train", 4998), ("val", 5105))
)


def _published(name: str, classes: str, splits: tuple, folder: str, **rest) -> Dataset:
    known = class_set(classes)
    return Dataset(
        name, known.names, known.prompts, known.palette, splits, folder=folder,
        unseen=known.unseen, **rest,
    )  # fmt: skip


_VOC_ROOT, _CONTEXT_ROOT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"

VOC12_20 = _published("VOC12_20", "voc", _VOC_SPLITS, _VOC_ROOT, reduce_zero_label=True)
VOC12_21 = _published("VOC12_21", "voc21", _VOC_SPLITS, _VOC_ROOT, background=True)
CONTEXT_59 = _published(
    "CONTEXT_59", "context", _CONTEXT_SPLITS, _CONTEXT_ROOT, reduce_zero_label=True
)
CONTEXT_60 = _published("CONTEXT_60", "context60", _CONTEXT_SPLITS, _CONTEXT_ROOT, background=True)
COCO_STUFF_164K = _published(
    "COCO_STUFF_164K",
    "stuff",
    _scan("images/{}2017", "annotations/{}2017", (("train", 118287), ("val", 5000))),
    "coco_stuff164k",
    label_suffix="_labelTrainIds.png",
)
ADE20K = _published(
    "ADE20K",
    "ade",
    _scan("images/{}", "annotations/{}", (("training", 20210), ("validation", 2000))),
    "ade/ADEChallengeData2016",
    reduce_zero_label=True,
)
CITYSCAPES = _published(
    "CITYSCAPES",
    "city",
    _scan("leftImg8bit/{}", "gtFine/{}", (("train", 2975), ("val", 500))),
    "cityscapes",
    image_suffix="_leftImg8bit.png",
    label_suffix="_gtFine_labelTrainIds.png",
)
