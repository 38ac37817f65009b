"""The scores of all classes in files of NumPy's, one for each image.

    file = np.load("photo.npz", allow_pickle=False)
    file["scores"]  # (h, w, c) float16: probabilities
    file["names"]  # (c,) text: of the last axis; "background" is the first
    file["size"]  # (2,) int32: height and width of the image, of which the maps may be smaller

Nothing is compressed: a file takes 2 bytes for each number.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from clipseg_jax.core.files import load_arrays
from clipseg_jax.segmentation import ClassScores
from input_pipeline.walk import open_regular
from input_pipeline.writing import write_atomic

_REMEDY = "delete it, and run predict again with --format npz"


def save_scores(path: str | Path, scores: ClassScores) -> Path:
    """Writes the scores of an image as float16.

    Raises:
      CannotWrite: see `write_atomic`.
    """
    arrays = {
        "scores": scores.values.astype(np.float16),
        "names": np.array(scores.names),
        "size": np.array(scores.image_size, np.int32),
    }
    return write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def load_scores(path: str | Path) -> ClassScores:
    """The scores of a file, which may be a stranger's; `values` are float16.

    Raises:
      ValueError: damaged, or not of this form; names the file and the remedy.
      OSError: it cannot be opened.
    """
    found = load_arrays(path, _REMEDY, "scores", "names", "size")
    scores, names, size = found["scores"], found["names"], found["size"]
    whole = (
        (scores.dtype, scores.ndim, size.dtype, size.shape) == (np.float16, 3, np.int32, (2,))
        and (names.dtype.kind, names.shape) == ("U", scores.shape[2:])
        and 0 not in scores.shape
        and (size >= scores.shape[:2]).all()
    )
    if not whole:
        raise ValueError(f"{path} holds no scores as predict stores them; {_REMEDY}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"{path} holds scores that are not from 0 to 1; {_REMEDY}")
    height, width = size.tolist()
    return ClassScores(scores, tuple(names.tolist()), (height, width))


def has_scores(path: Path, longest_px: int) -> bool:
    """Whether a file of scores is complete, at this size; reads its directory and two headers."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            with archive.open("scores.npy") as member:
                np.lib.format.read_magic(member)
                shape = np.lib.format.read_array_header_1_0(member)[0]
            with archive.open("size.npy") as member:
                size = np.lib.format.read_array(member, allow_pickle=False)
        return len(shape) == 3 and max(shape[:2]) == min(longest_px, max(size.tolist()))
    except Exception:  # zipfile raises more than a dozen kinds of errors for damaged files
        return False
