"""Where a dataset's files lie, and how its splits are listed."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.datasets.images import File

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_MISSING_SHOWN = 3


@dataclass(frozen=True)
class Example:
    """One picture: its name (path below the image folder, no suffix) and its files."""

    name: str
    image_path: File
    label_path: File | None


@dataclass(frozen=True)
class Part:
    """A piece of a split, in folders below the root.

    Attributes:
      images: folder of the pictures.
      labels: folder of the label maps; None: there are none.
      lists: lists of stems, of which the first that is there counts; without any the folder of
        pictures is scanned.
      may_scan: it is scanned as well where none of the lists is there.
      elsewhere: folders that may hold the pictures instead, the first that is there.
      labels_elsewhere: folders that hold the label maps if they are there, and what the stems begin
        with that is not in these maps' names.
    """

    images: str
    labels: str | None
    lists: tuple[str, ...] = ()
    may_scan: bool = False
    elsewhere: tuple[str, ...] = ()
    labels_elsewhere: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Annotations:
    """Where a split's image labels come from, below the root; see `image_labels`.

    Attributes:
      xml: folder of VOC's detection annotations, <stem>.xml.
      instances: COCO's instances_*.json.
      listed: ids on the lines of the split's list, `<stem> <id> <id> ...`, count before these.
      classes: the class set that the ids are of; "": the dataset's own, without background.
      ids: listed id -> class id, 255 for none; (): they are the same.
    """

    xml: str | None = None
    instances: str | None = None
    listed: bool = False
    classes: str = ""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Split:
    """Parts in their published order, and how many pictures they hold together.

    `also` are the numbers of other published lists of this split.
    """

    parts: tuple[Part, ...]
    count: int | None = None
    also: tuple[int, ...] = ()
    annotations: Annotations | None = None


@dataclass(frozen=True)
class Layout:
    """Folders and file names of a dataset.

    Attributes:
      splits: name -> Split, as pairs so that the record stays hashable.
      folders: where the root usually lies below a folder of datasets, the first one found counts;
        or one absolute path, which stands for any root.
      image_suffix: one suffix, or "" for any picture format.
      label_suffix: replaces `image_suffix` in the label file's name.
      remedy: what to do if something is missing, a sentence.
    """

    splits: tuple[tuple[str, Split], ...]
    folders: tuple[str, ...] = ()
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    remedy: str = ""

    def index(
        self, root: str | os.PathLike[str], split: str, *, labels: bool = True
    ) -> list[Example]:
        """See `Dataset.index`."""
        parts = self.split(split).parts
        root = self.resolve(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder. {self._layout(split)}")
        examples: list[Example] = []
        for part in parts:
            if not labels:
                part = dataclasses.replace(part, labels=None)
            examples += self._part(root, part, split)
        names = {example.name for example in examples}
        if len(names) != len(examples):
            raise ValueError(
                f"Split {split}: {len(examples) - len(names)} names occur more than once in "
                f"the split's lists; each picture may be counted once."
            )
        return examples

    def warn_of_count(self, root: str | os.PathLike[str], split: str, found: int) -> None:
        """Logs a warning if the split should have another number of pictures."""
        published = self.split(split)
        if published.count is not None and found not in (published.count, *published.also):
            logging.getLogger(__name__).warning(
                "%s: split %s has %d pictures, the published one %s; scores are not comparable.",
                *(root, split, found, " or ".join(map(str, (published.count, *published.also)))),
            )

    def split(self, name: str) -> Split:
        """The split of a name.

        Raises:
          ValueError: there is no such split.
        """
        splits = dict(self.splits)
        if name not in splits:
            raise ValueError(f"There is no split {name!r}; choose one of: {', '.join(splits)}.")
        return splits[name]

    def resolve(self, root: str | os.PathLike[str]) -> Path:
        """The dataset's own folder: `root` itself, or a usual one below it if that is there."""
        for folder in self.folders:
            below = Path(root) / folder
            if below.is_dir() or Path(folder).is_absolute():
                return below
        return Path(root)

    def source(self, split: str) -> list[str]:
        """What the split is made of, below the root: patterns of its files, and its lists."""
        lines = []
        for part in self.split(split).parts:
            lines.append(f"{part.images}/*{self.image_suffix}")
            if part.labels is not None:
                lines.append(f"{part.labels}/*{self.label_suffix}")
            if part.lists and not part.may_scan:
                lines.append(part.lists[0])
        return lines

    def list_of(self, root: Path, part: Part) -> str | None:
        """The part's list below the root; None: the folder is scanned.

        It need not be there: then it is the first of those that were looked for.
        """
        there = [name for name in part.lists if (root / name).is_file()]
        if there:
            return there[0]
        return None if part.may_scan or not part.lists else part.lists[0]

    def images_of(self, root: Path, part: Part) -> str:
        """The part's folder of pictures below the root, the usual one if none is there."""
        there = [name for name in (part.images, *part.elsewhere) if (root / name).is_dir()]
        return (there or [part.images])[0]

    def labels_of(self, root: Path, part: Part) -> tuple[str, str]:
        """The folder of a part's label maps below the root; what their names lack of the stems."""
        assert part.labels is not None
        there = [each for each in part.labels_elsewhere if (root / each[0]).is_dir()]
        return there[0] if there else (part.labels, "")

    def stems(self, root: Path, part: Part, listed: str) -> list[str]:
        """The stems of a part's list, whose lines may as well name files, or hold image labels.

        `<stem>`, `<stem>.jpg`, `<stem> <id> <id> ...` and DeepLab's
        `/JPEGImages/<stem>.jpg /SegmentationClassAug/<stem>.png` are understood.

        Raises:
          OSError: it can't be read. ValueError: it names label files of another folder.
        """
        stems = []
        for first, *others in read_list(root / listed):
            stems.append(_below(first, part.images).removesuffix(self.image_suffix))
            label = others[0] if others and others[0].endswith(self.label_suffix) else None
            if label and part.labels and _below(label, part.labels) == label.removeprefix("/"):
                raise ValueError(
                    f"{root / listed}: names labels like {label}, and this dataset's are in "
                    f"{part.labels}/; take a list of stems, or the dataset that fits it"
                )
        return stems

    def _part(self, root: Path, part: Part, split: str) -> list[Example]:
        image_folder = root / self.images_of(root, part)
        images = self._listing(image_folder, split)
        listed = self.list_of(root, part)
        if listed is None:
            files = sorted(file for file in images if self._is_image(file))
            stems = [self._stem(file) for file in files]
            # a.jpg beside a.png: both count, told apart by the suffix.
            seen = Counter(stems)
            names = [s if seen[s] == 1 else f for s, f in zip(stems, files, strict=True)]
        else:
            try:
                names = stems = self.stems(root, part, listed)
            except OSError as error:
                raise FileNotFoundError(
                    f"No split list {root / listed}. {self._layout(split)}"
                ) from error
            files = [stem + self.image_suffix for stem in stems]
            self._require(images, files, f"{image_folder} (see {listed})", split)
        if not files:
            kind = f"*{self.image_suffix}" if self.image_suffix else "pictures"
            raise FileNotFoundError(f"No {kind} in {image_folder}. {self._layout(split)}")
        if part.labels is None:
            return [
                Example(name, image_folder / file, None)
                for name, file in zip(names, files, strict=True)
            ]
        folder, lacks = self.labels_of(root, part)
        labels = [stem.removeprefix(lacks) + self.label_suffix for stem in stems]
        label_folder = root / folder
        self._require(self._listing(label_folder, split), labels, str(label_folder), split)
        return [
            Example(name, image_folder / file, label_folder / label)
            for name, file, label in zip(names, files, labels, strict=True)
        ]

    def _is_image(self, file: str) -> bool:
        if self.image_suffix:
            return file.endswith(self.image_suffix)
        return file.lower().endswith(PICTURES)

    def _stem(self, file: str) -> str:
        suffix = self.image_suffix or os.path.splitext(file)[1]
        return file[: len(file) - len(suffix)]

    def _listing(self, folder: Path, split: str) -> set[str]:
        if not folder.is_dir():
            raise FileNotFoundError(f"No folder {folder}. {self._layout(split)}")
        return files_below(folder)

    def _require(self, found: set[str], wanted: Sequence[str], where: str, split: str) -> None:
        missing = [name for name in wanted if name not in found]
        if missing:
            shown = ", ".join(missing[:_MISSING_SHOWN]) + (", ..." if len(missing) > 3 else "")
            raise FileNotFoundError(
                f"{len(missing)} of {len(wanted)} files are missing in {where}: {shown}. "
                f"{self._layout(split)}"
            )

    def _layout(self, split: str) -> str:
        where = f" (usually {self.folders[0]})" if self.folders else ""
        need = f"Split {split} needs, below the root{where}: {', '.join(self.source(split))}."
        lists = [name for part in self.split(split).parts for name in part.lists[1:]]
        others = [name for part in self.split(split).parts for name in part.elsewhere]
        masks = [name for part in self.split(split).parts for name, _ in part.labels_elsewhere]
        if others:
            need += f" Pictures may be in {' or '.join(others)} instead."
        if masks:
            need += f" Label maps may be in {' or '.join(masks)} instead, named by number."
        if lists:
            need += f" The list may be {' or '.join(lists)} instead."
        return f"{need} {self.remedy}".rstrip()


def files_below(folder: Path) -> set[str]:
    """Every file below `folder`, relative, hidden ones left out. One walk."""
    found: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(where).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        found.update(prefix + name for name in files if not name.startswith("."))
    return found


def read_list(path: Path) -> list[list[str]]:
    """The words on each line of a list that isn't blank."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line.strip()]


def _below(path: str, folder: str) -> str:
    """A listed path without the folder, if it begins with it; without a leading slash anyway."""
    return path.removeprefix("/").removeprefix(f"{folder}/")
