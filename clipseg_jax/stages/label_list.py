"""Label lists: text files with a line `<image id> <class id> <class id> ...` for each image.

CLIP-ES reads COCO's image labels from such lists, TagCLIP writes them (spec clip_es, section 2;
spec tagclip, sections 2 and 7). WeCLIP's cls_labels_onehot.npy, a dictionary of vectors of 0 and 1
(spec weclip, section 8.2), can be read as well. Users write names: `<image>: <class>, <class>`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from clipseg_jax.core.files import write_atomic
from clipseg_jax.core.npy import read_dictionary
from clipseg_jax.core.safe_pickle import shown
from input_pipeline.text_lists import numbered_lines


def label_line(name: str, classes: Sequence[int]) -> str:
    """The line of one image.

    Raises:
      ValueError: the image id is empty or contains white space.
    """
    if len(name.split()) != 1 or name != name.strip():
        raise ValueError(f"image id {name!r} is empty or contains white space; give one word")
    return " ".join([name, *(str(int(i)) for i in classes)]) + "\n"


def write_label_list(path: str | Path, images: Iterable[tuple[str, Sequence[int]]]) -> Path:
    """Writes (image id, class ids) of each image in the order given, atomically."""
    text = "".join(label_line(name, classes) for name, classes in images)
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def read_label_list(
    path: str | Path, classes: int, names: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Image id -> class ids, both in the file's order; blank lines are skipped.

    Args:
      path: a label list, or a .npy file like WeCLIP's. A line may have names in place of ids, such
        as `photo 7: cat, traffic light`.
      classes: number of classes; class ids are 0..classes - 1.
      names: of the classes; (): lines have ids alone.

    Raises:
      ValueError: a class id out of range, an unknown name, or a class or image that is listed
        twice, with the number of the line; a list that is empty or no UTF-8 text; or a .npy file of
        anything but vectors for these classes.
    """
    if Path(path).suffix == ".npy":
        return _read_one_hot(path, classes)
    listed: dict[str, tuple[int, ...]] = {}
    for number, line in numbered_lines(path):
        name, *words = line.split()
        if names and ":" in line and not (words and all(map(_is_number, words))):
            name, ids = _named(line, names, f"{path}, line {number}")
        else:
            for word in words:
                if not (_is_number(word) and int(word) < classes):
                    raise ValueError(
                        f"{path}, line {number}: class {shown(word)} is not in 0..{classes - 1}; "
                        "is this a label list, and for these classes?"
                    )
            ids = tuple(map(int, words))
        if len(set(ids)) < len(ids):
            raise ValueError(f"{path}, line {number}: a class is listed twice; list it once")
        if name in listed:
            raise ValueError(
                f"{path}, line {number}: image {shown(name)} is listed twice; list it once"
            )
        listed[name] = ids
    return listed


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 9


def _named(line: str, names: Sequence[str], where: str) -> tuple[str, tuple[int, ...]]:
    """Image id and class ids of a line `<image>: <class>, <class>`."""
    image, _, listed = line.rpartition(":")
    ids = []
    for word in filter(None, (part.strip() for part in listed.split(","))):
        if word not in names:
            near = difflib.get_close_matches(word, names, 1)
            raise ValueError(
                f"{where}: {shown(word)} is no class; "
                + (f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}")
            )
        ids.append(names.index(word))
    return image.strip(), tuple(ids)


def _read_one_hot(path: str | Path, classes: int) -> dict[str, tuple[int, ...]]:
    """`read_label_list` of a dictionary: image id -> (classes,) of 0 and 1."""
    try:
        vectors = read_dictionary(path)
        if not all(isinstance(row, np.ndarray) for row in vectors.values()):
            raise ValueError("an entry that is no array")
        if not all(isinstance(name, str) and name.isprintable() for name in vectors):
            raise ValueError("a name of an image that is no text")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of image labels ({error or type(error).__name__}); give "
            "WeCLIP's cls_labels_onehot.npy, or a list with lines `<id> <class> <class> ...`"
        ) from error
    for name, row in vectors.items():
        if row.shape != (classes,) or not np.all((row == 0) | (row == 1)):
            raise ValueError(
                f"{path}: image {shown(name)} has {row.dtype} {row.shape}; expected a vector of "
                f"{classes} values, 0 or 1; is the file for these classes?"
            )
    return {name: tuple(np.flatnonzero(row).tolist()) for name, row in vectors.items()}
