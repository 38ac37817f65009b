"""Lists of images with their classes: a line `<id> <class> <class> ...` for each image.

CLIP-ES reads COCO's image-level labels from such lists, TagCLIP writes them. Specs clip_es, section
2, and tagclip, sections 2 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipseg_jax.core.files import write_atomic


def label_line(name: str, classes: Sequence[int]) -> str:
    """One image's line.

    Raises:
      ValueError: an id with white space in it, or none.
    """
    if len(name.split()) != 1 or name != name.strip():
        raise ValueError(f"image id {name!r} cannot stand in a label list; it needs to be one word")
    return " ".join([name, *(str(int(i)) for i in classes)]) + "\n"


def write_label_list(path: str | Path, images: Iterable[tuple[str, Sequence[int]]]) -> Path:
    """Writes (id, class ids) of each image in the order given, atomically."""
    text = "".join(label_line(name, classes) for name, classes in images)
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def read_label_list(path: str | Path, classes: int) -> dict[str, tuple[int, ...]]:
    """Image id -> class ids, both in the file's order; blank lines are skipped.

    Raises:
      ValueError: a class that is no id from 0 to `classes` - 1, a class or an image that stands
        twice; says which line.
    """
    found: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        if not line.split():
            continue
        name, *words = line.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and int(word) < classes):
                raise ValueError(
                    f"{path}, line {number}: class {word!r} is none of 0 to {classes - 1}; the "
                    "file belongs to another class list, or is no label list"
                )
        ids = tuple(map(int, words))
        if len(set(ids)) < len(ids):
            raise ValueError(f"{path}, line {number}: a class stands twice; name it once")
        if name in found:
            raise ValueError(f"{path}, line {number}: image {name} stands twice; list it once")
        found[name] = ids
    return found
