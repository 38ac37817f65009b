"""Class activation maps (CAMs) on disk, in the layout of the published files.

One `<id>.npy` per image: a pickled dictionary with `keys` int64 (m,), 0-based class ids, and
`attn_highres` float16 (m, h, w). Spec clip_es, section 7. Loading one with NumPy can run any
code; `safe_pickle` reads arrays, numbers and text only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipseg_jax.core.files import write_atomic
from clipseg_jax.core.pickled_arrays import read_dictionary


class SavedCAM(NamedTuple):
    """The CAMs of one image, in the order of its labels."""

    classes: np.ndarray  # (m,) int64, 0-based ids
    maps: np.ndarray  # (m, h, w) float16, in [0, 1]


def write_cam(path: str | Path, classes: np.ndarray, maps: np.ndarray) -> Path:
    """Writes the CAMs (m, h, w) of m classes, atomically.

    Raises:
      ValueError: the number of maps differs from the number of classes.
    """
    classes, maps = np.asarray(classes, np.int64), np.asarray(maps, np.float16)
    if maps.ndim != 3 or classes.shape != maps.shape[:1]:
        raise ValueError(f"maps of shape {maps.shape} for classes of shape {classes.shape}")
    content: Any = {"keys": classes, "attn_highres": maps}
    return write_atomic(path, lambda file: np.save(file, content, allow_pickle=True))


def read_cam(path: str | Path) -> SavedCAM:
    """Reads the CAMs that `write_cam` or the published code saved.

    Raises:
      ValueError: another file or a damaged one; the message says what is wrong with it.
    """
    try:
        content = read_dictionary(path)
        classes, maps = np.asarray(content["keys"]), np.asarray(content["attn_highres"])
        if maps.ndim != 3 or classes.shape != maps.shape[:1] or classes.dtype.kind not in "iu":
            raise ValueError(f"maps {maps.shape} for classes {classes.shape} {classes.dtype}")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of class activation maps ({error or type(error).__name__}); "
            "delete it and compute the maps again"
        ) from error
    return SavedCAM(classes.astype(np.int64), maps.astype(np.float16, copy=False))
