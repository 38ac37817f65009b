"""Names and colours of masks, in the form that CVAT's "Segmentation mask" has beside its PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipseg_jax.core.label_images import palette
from input_pipeline.text_lists import escaped
from input_pipeline.walk import open_regular
from input_pipeline.writing import write_atomic

NAME = "labelmap.txt"
_HEAD = "# label:color_rgb:parts:actions; clipseg_jax: in the masks the first label is 0\n"


def write_label_map(out: Path, names: Sequence[str]) -> bool:
    """Writes `labelmap.txt`, a label in a line; False if the one that is there is another's.

    Args:
      out: the folder of the masks.
      names: of the masks' values from 0, background, on. Colons, which separate fields, and the
        sign of a comment become blanks.

    Raises:
      CannotWrite: see `write_atomic`.
    """
    path = out / NAME
    if path.exists():
        with open_regular(path) as file:
            if file.read(len(_HEAD)) != _HEAD.encode():
                return False
    lines = [
        f"{_plain(name)}:{red},{green},{blue}::\n"
        for name, (red, green, blue) in zip(names, palette(len(names)).tolist(), strict=True)
    ]
    text = _HEAD + "".join(lines)
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))
    return True


def _plain(name: str) -> str:
    return " ".join(escaped(name).translate({ord(":"): " ", ord("#"): " "}).split())
