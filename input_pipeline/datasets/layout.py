"""Folder layouts of datasets: where images and label maps are, and how splits are listed."""

from __future__ import annotations

import dataclasses
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.datasets.images import File
from input_pipeline.text_lists import read_list
from input_pipeline.walk import find_files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_MISSING_SHOWN = 3
_LEFT_OUT_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One image: its name (path below the image folder, without suffix) and its files."""

    name: str
    image_path: File
    label_path: File | None


@dataclass(frozen=True)
class Part:
    """A part of a split; all paths are below the root.

    Attributes:
      images: folder of the images.
      labels: folder of the label maps; None: there are none.
      lists: lists of stems, of which the first that exists is used; (): the image folder is
        scanned.
      may_scan: the image folder is scanned if none of the lists exists.
      elsewhere: other folders that may contain the images; the first that exists is used.
      labels_elsewhere: other folders that may contain the label maps, which take precedence over
        `labels`, each with the prefix of the stems that its file names lack.
    """

    images: str
    labels: str | None
    lists: tuple[str, ...] = ()
    may_scan: bool = False
    elsewhere: tuple[str, ...] = ()
    labels_elsewhere: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Annotations:
    """Where a split's image labels come from; all paths are below the root. See `image_labels`.

    Attributes:
      xml: folder of VOC's detection annotations, <stem>.xml.
      instances: COCO's instances_*.json.
      listed: ids on the lines of the split's list, `<stem> <id> <id> ...`, take precedence.
      classes: the class set of the ids; "": the dataset's classes without the background.
      ids: listed id -> class id, 255 for none; (): they are equal.
    """

    xml: str | None = None
    instances: str | None = None
    listed: bool = False
    classes: str = ""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Split:
    """A split of a dataset.

    Attributes:
      parts: in the published order.
      count: published number of images; None: not published.
      also: numbers of images in other published lists of this split.
      annotations: of image labels; None: there are none.
    """

    parts: tuple[Part, ...]
    count: int | None = None
    also: tuple[int, ...] = ()
    annotations: Annotations | None = None


@dataclass(frozen=True)
class Layout:
    """Folders and file names of a dataset.

    Attributes:
      splits: pairs (name, split), so that the record is hashable.
      folders: where the dataset usually is below a folder of datasets, the first that exists is
        used; or one absolute path, which replaces any root.
      image_suffix: suffix of the image files; "": any image format.
      label_suffix: replaces `image_suffix` in names of label files.
      remedy: a sentence that says what to do if files are missing.
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
        twice = [name for name, count in Counter(e.name for e in examples).items() if count > 1]
        if twice:
            raise ValueError(
                f"Split {split}: {len(twice)} images are listed twice, first {twice[0]}; list each "
                f"image once."
            )
        return examples

    def warn_of_count(self, root: str | os.PathLike[str], split: str, count: int) -> None:
        """Logs a warning if `count` is not the published number of images of the split."""
        published = self.split(split)
        if published.count is not None and count not in (published.count, *published.also):
            logging.getLogger(__name__).warning(
                "%s: split %s has %d images, the published one %s; scores are not comparable.",
                *(root, split, count, " or ".join(map(str, (published.count, *published.also)))),
            )

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
          ValueError: there is no such split.
        """
        splits = dict(self.splits)
        if name not in splits:
            raise ValueError(f"There is no split {name!r}; choose one of: {', '.join(splits)}.")
        return splits[name]

    def resolve(self, root: str | os.PathLike[str]) -> Path:
        """The dataset's own folder: the first of `folders` that exists below `root`, or `root`."""
        for folder in self.folders:
            below = Path(root) / folder
            if below.is_dir() or Path(folder).is_absolute():
                return below
        return Path(root)

    def source(self, split: str) -> list[str]:
        """File patterns and lists of a split, below the root."""
        patterns = []
        for part in self.split(split).parts:
            patterns.append(f"{part.images}/*{self.image_suffix}")
            if part.labels is not None:
                patterns.append(f"{part.labels}/*{self.label_suffix}")
            if part.lists and not part.may_scan:
                patterns.append(part.lists[0])
        return patterns

    def list_of(self, root: Path, part: Part) -> str | None:
        """The part's list below the root; None: the image folder is scanned.

        If none exists, the first of `part.lists`.
        """
        existing = [name for name in part.lists if (root / name).exists()]
        if existing:
            return existing[0]
        return None if part.may_scan or not part.lists else part.lists[0]

    def images_of(self, root: Path, part: Part) -> str:
        """The part's image folder below the root; if none exists, `part.images`."""
        existing = [name for name in (part.images, *part.elsewhere) if (root / name).is_dir()]
        return (existing or [part.images])[0]

    def labels_of(self, root: Path, part: Part) -> tuple[str, str]:
        """A part's label folder below the root, and the prefix of stems that file names lack."""
        assert part.labels is not None
        existing = [each for each in part.labels_elsewhere if (root / each[0]).is_dir()]
        return existing[0] if existing else (part.labels, "")

    def stems(self, root: Path, part: Part, listed: str) -> list[str]:
        """The stems in a list of a part.

        Accepts lines of the form `<stem>`, `<stem>.jpg`, `<stem> <id> <id> ...` and DeepLab's
        `/JPEGImages/<stem>.jpg /SegmentationClassAug/<stem>.png`.

        Raises:
          OSError: the list cannot be read.
          BadList: it is empty, no UTF-8, or names files outside the folder.
          ValueError: it names label files of another folder.
        """
        stems = []
        for first, *others in read_list(root / listed):
            stems.append(_below(first, part.images).removesuffix(self.image_suffix))
            label = others[0] if others and others[0].endswith(self.label_suffix) else None
            if label and part.labels and _below(label, part.labels) == label.lstrip("/"):
                raise ValueError(
                    f"{root / listed}: names labels like {label}, but this dataset's are in "
                    f"{part.labels}/; use a list of stems, or the dataset that the list is for"
                )
        return stems

    def _part(self, root: Path, part: Part, split: str) -> list[Example]:
        image_folder = root / self.images_of(root, part)
        images = self._listing(image_folder, split)
        listed = self.list_of(root, part)
        if listed is None:
            files = sorted(file for file in images if self._is_image(file))
            stems = [self._stem(file) for file in files]
            # a.jpg and a.png are two images: their names keep the suffix.
            counts = Counter(stems)
            names = [s if counts[s] == 1 else f for s, f in zip(stems, files, strict=True)]
        else:
            try:
                names = stems = self.stems(root, part, listed)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"No split list {root / listed}. {self._layout(split)}"
                ) from error
            files = [stem + self.image_suffix for stem in stems]
            files = self._require(images, image_folder, files, f" (see {listed})", split)
        if not files:
            kind = f"*{self.image_suffix}" if self.image_suffix else "images"
            raise FileNotFoundError(f"No {kind} in {image_folder}. {self._layout(split)}")
        if part.labels is None:
            return [
                Example(name, image_folder / file, None)
                for name, file in zip(names, files, strict=True)
            ]
        folder, prefix = self.labels_of(root, part)
        labels = [stem.removeprefix(prefix) + self.label_suffix for stem in stems]
        label_folder = root / folder
        existing = self._listing(label_folder, split)
        labels = self._require(existing, label_folder, labels, "", split)
        return [
            Example(name, image_folder / file, label_folder / label)
            for name, file, label in zip(names, files, labels, strict=True)
        ]

    def _is_image(self, file: str) -> bool:
        if self.image_suffix:
            return file.endswith(self.image_suffix)
        return file.lower().endswith(IMAGE_SUFFIXES)

    def _stem(self, file: str) -> str:
        suffix = self.image_suffix or os.path.splitext(file)[1]
        return file[: len(file) - len(suffix)]

    def _listing(self, folder: Path, split: str) -> set[str]:
        if not folder.is_dir():
            raise FileNotFoundError(f"No folder {folder}. {self._layout(split)}")
        return files_below(folder)

    def _require(
        self, existing: set[str], folder: Path, wanted: Sequence[str], where: str, split: str
    ) -> list[str]:
        """The names of the wanted files as they are in `folder`."""
        pairs = list(find_names(existing, folder, wanted))
        missing = [name for name, file in pairs if file is None]
        if missing:
            # Listed names may hold anything.
            shown = ", ".join(
                name if name.isprintable() else repr(name) for name in missing[:_MISSING_SHOWN]
            ) + (", ..." if len(missing) > 3 else "")
            raise FileNotFoundError(
                f"{len(missing)} of {len(wanted)} files are missing in {folder}{where}: {shown}. "
                f"{self._layout(split)}"
            )
        return [file for _, file in pairs if file is not None]

    def _layout(self, split: str) -> str:
        where = f" (usually {self.folders[0]})" if self.folders else ""
        need = f"Split {split} needs, below the root{where}: {', '.join(self.source(split))}."
        lists = [name for part in self.split(split).parts for name in part.lists[1:]]
        others = [name for part in self.split(split).parts for name in part.elsewhere]
        masks = [name for part in self.split(split).parts for name, _ in part.labels_elsewhere]
        if others:
            need += f" Images may be in {' or '.join(others)} instead."
        if masks:
            need += f" Label maps may be in {' or '.join(masks)} instead, named by number."
        if lists:
            need += f" The list may be {' or '.join(lists)} instead."
        return f"{need} {self.remedy}".rstrip()


def files_below(folder: Path) -> set[str]:
    """Paths of all files below `folder`, relative to it, except hidden ones; see `find_files`.

    Logs a warning that names what is left out.
    """
    if not folder.is_dir():
        return set()
    found = find_files(folder, ())
    for path, reason in found.left_out[:_LEFT_OUT_SHOWN]:
        logging.getLogger(__name__).warning("%s %s: left out.", path, reason)
    if len(found.left_out) > _LEFT_OUT_SHOWN:
        logging.getLogger(__name__).warning(
            "%s: %d more are left out.", folder, len(found.left_out) - _LEFT_OUT_SHOWN
        )
    start = len(folder.parts)
    return {"/".join(path.parts[start:]) for path in found.files}


def find_names(
    existing: set[str], folder: Path, wanted: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    """Yields each wanted name with the file in `folder` that has it; None: it is missing.

    Files may have a name in another Unicode form (macOS and Linux differ in umlauts), or be reached
    by a link that the walk did not follow a second time.

    Args:
      existing: `files_below` of the folder.
    """
    other_forms: dict[str, str] | None = None
    for name in wanted:
        if name in existing:
            yield name, name
            continue
        if other_forms is None:
            other_forms = {_nfc(each): each for each in existing if not each.isascii()}
        linked = name if os.path.isfile(folder / name) else None
        yield name, other_forms.get(_nfc(name), linked)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _below(path: str, folder: str) -> str:
    """A listed path relative to `folder` if it starts with it, without a leading slash."""
    return path.lstrip("/").removeprefix(f"{folder}/").lstrip("/")
