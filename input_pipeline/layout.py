"""Where a dataset's files lie, and how its splits are listed."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
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
class Layout:
    """Folders and file names of a dataset.

    Attributes:
      splits: name -> Split, as pairs so that the record stays hashable.
      folder: where the root usually lies below a folder of datasets.
      image_suffix: one suffix, or "" for any picture format.
      label_suffix: replaces `image_suffix` in the label file's name.
    """

    splits: tuple[tuple[str, Split], ...]
    folder: str = ""
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"

    def index(self, root: str | os.PathLike[str], split: str) -> list[Example]:
        """See `Dataset.index`."""
        splits = dict(self.splits)
        if split not in splits:
            raise ValueError(f"There is no split {split!r}; choose one of: {', '.join(splits)}.")
        root = self.resolve(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder. {self._layout(split)}")
        examples: list[Example] = []
        for part in splits[split].parts:
            examples += self._part(root, part, split)
        names = {example.name for example in examples}
        if len(names) != len(examples):
            raise ValueError(
                f"Split {split}: {len(examples) - len(names)} names occur more than once in "
                f"the split's lists; each picture may be counted once."
            )
        expected = splits[split].count
        if expected is not None and len(examples) != expected:
            logging.getLogger(__name__).warning(
                "%s: split %s has %d pictures, the published one %d; scores are not comparable.",
                *(root, split, len(examples), expected),
            )
        return examples

    def resolve(self, root: str | os.PathLike[str]) -> Path:
        """The dataset's own folder: `root` itself, or `folder` below it if that is there."""
        below = Path(root) / self.folder
        return below if below.is_dir() or Path(self.folder).is_absolute() else Path(root)

    def _part(self, root: Path, part: Part, split: str) -> list[Example]:
        images = self._listing(root / part.images, split)
        if part.stems is None:
            files = sorted(file for file in images if self._is_image(file))
            stems = [self._stem(file) for file in files]
            # a.jpg beside a.png: both count, told apart by the suffix.
            seen = Counter(stems)
            names = [s if seen[s] == 1 else f for s, f in zip(stems, files, strict=True)]
        else:
            names = stems = self._stems(root / part.stems, split)
            files = [stem + self.image_suffix for stem in stems]
            self._require(images, files, root / part.images, split)
        if not files:
            kind = f"*{self.image_suffix}" if self.image_suffix else "pictures"
            raise FileNotFoundError(f"No {kind} in {root / part.images}. {self._layout(split)}")
        if part.labels is None:
            return [
                Example(name, root / part.images / file, None)
                for name, file in zip(names, files, strict=True)
            ]
        labels = [stem + self.label_suffix for stem in stems]
        self._require(self._listing(root / part.labels, split), labels, root / part.labels, split)
        return [
            Example(name, root / part.images / file, root / part.labels / label)
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
        return f"Split {split} needs, below the root{where}: {', '.join(lines)}."


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
