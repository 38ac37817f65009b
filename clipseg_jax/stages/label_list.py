"""Lists of images with their classes: a line `<id> <class> <class> ...` for each image.

CLIP-ES reads COCO's image-level labels from such lists, TagCLIP writes them. Spec clip_es, section
2; spec tagclip, sections 2 and 7. WeCLIP's are dictionaries of vectors of 0 and 1 in a .npy file
(cls_labels_onehot.npy; spec weclip, section 8.2), and are read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from clipseg_jax.core.files import write_atomic
from clipseg_jax.core.safe_pickle import read_dictionary


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
        twice; says which line. Or a .npy file of anything but vectors for these classes.
    """
    if Path(path).suffix == ".npy":
        return _of_vectors(path, classes)
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


def _of_vectors(path: str | Path, classes: int) -> dict[str, tuple[int, ...]]:
    """The same of a dictionary: image id -> (classes,) of 0 and 1."""
    try:
        vectors = {str(name): np.asarray(row) for name, row in read_dictionary(path).items()}
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is no file of image labels ({error or type(error).__name__}); give WeCLIP's "
            "cls_labels_onehot.npy, or a list with lines `<id> <class> <class> ...`"
        ) from error
    for name, row in vectors.items():
        if row.shape != (classes,) or not np.all((row == 0) | (row == 1)):
            raise ValueError(
                f"{path}: image {name} has {row.dtype} {row.shape}, and there are {classes} "
                "classes, each to be 0 or 1; the file belongs to another class list"
            )
    return {name: tuple(np.flatnonzero(row).tolist()) for name, row in vectors.items()}
