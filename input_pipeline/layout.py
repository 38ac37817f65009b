"""Where a dataset's files lie, and how its splits are listed."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.images import File

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
    """A piece of a split: folders below the root, and a list of stems or None for a scan.

    `may_list` is a list that is used if it is there; otherwise the folder is scanned.
    """

    images: str
    labels: str | None
    stems: str | None = None
    may_list: str | None = None


@dataclass(frozen=True)
class Split:
    """Parts in their published order, and how many pictures they hold together.

    `also` are the numbers of other published lists of this split.
    """

    parts: tuple[Part, ...]
    count: int | None = None
    also: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Folders and file names of a dataset.

    Attributes:
      splits: name -> Split, as pairs so that the record stays hashable.
      folders: where the root usually lies below a folder of datasets, the first one found counts;
        or one absolute path, which stands for any root.
      image_suffix: one suffix, or "" for any picture format.
      label_suffix: replaces `image_suffix` in the label file's name.
    """

    splits: tuple[tuple[str, Split], ...]
    folders: tuple[str, ...] = ()
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"

    def index(self, root: str | os.PathLike[str], split: str) -> list[Example]:
        """See `Dataset.index`."""
        parts = self.split(split).parts
        root = self.resolve(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder. {self._layout(split)}")
        examples: list[Example] = []
        for part in parts:
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
            if part.stems is not None:
                lines.append(part.stems)
        return lines

    def _part(self, root: Path, part: Part, split: str) -> list[Example]:
        images = self._listing(root / part.images, split)
        stems_file = part.stems
        if stems_file is None and part.may_list and (root / part.may_list).is_file():
            stems_file = part.may_list
        if stems_file is None:
            files = sorted(file for file in images if self._is_image(file))
            stems = [self._stem(file) for file in files]
            # a.jpg beside a.png: both count, told apart by the suffix.
            seen = Counter(stems)
            names = [s if seen[s] == 1 else f for s, f in zip(stems, files, strict=True)]
        else:
            names = stems = self._stems(root / stems_file, split)
            files = [stem + self.image_suffix for stem in stems]
            self._require(images, files, f"{root / part.images} (see {stems_file})", split)
        if not files:
            kind = f"*{self.image_suffix}" if self.image_suffix else "pictures"
            raise FileNotFoundError(f"No {kind} in {root / part.images}. {self._layout(split)}")
        if part.labels is None:
            return [
                Example(name, root / part.images / file, None)
                for name, file in zip(names, files, strict=True)
            ]
        labels = [stem + self.label_suffix for stem in stems]
        there = self._listing(root / part.labels, split)
        self._require(there, labels, str(root / part.labels), split)
        image_folder, label_folder = root / part.images, root / part.labels
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

    def _stems(self, path: Path, split: str) -> list[str]:
        try:
            return listed_stems(path)
        except OSError as error:
            raise FileNotFoundError(f"No split list {path}. {self._layout(split)}") from error

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
        return f"Split {split} needs, below the root{where}: {', '.join(self.source(split))}."


def files_below(folder: Path) -> set[str]:
    """Every file below `folder`, relative, hidden ones left out. One walk."""
    found: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(where).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        found.update(prefix + name for name in files if not name.startswith("."))
    return found


def listed_stems(path: Path) -> list[str]:
    """The stems that a split list names, one a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    # VOC's per-class lists carry a second column; only the stem counts.
    return [line.split()[0] for line in lines if line.strip()]
