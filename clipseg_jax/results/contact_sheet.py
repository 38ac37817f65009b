"""A folder of masks on one page: thumbnails, classes with colours and shares, search and sorting.

The page is a single file of at most LIMIT images, 8 to 25 kB each; it needs no network, and opens
from a disk. It keeps its thumbnails, so that a run makes those of new masks alone.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from clipseg_jax.core.html import data_uri, escape, image_uri, json_block, page
from clipseg_jax.core.label_images import palette
from input_pipeline.datasets.images import BadFile, read_image, read_label
from input_pipeline.text_lists import escaped
from input_pipeline.walk import open_regular
from input_pipeline.writing import write_atomic

NAME = "index.html"
LIMIT = 1000  # images, the first by name
SIDE_PX = 200  # longer side of a thumbnail

_BLOCK = "clipseg_jax-results"  # id of the page's data; also tells that a page is of this command
_MOST_BYTES = 2**28  # of a page that is read again; of noise alone a page has 90 MB
_URI = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/=]+")
_OF_THE_ROW = ("image", "bytes", "modified_ns", "classes")  # a thumbnail is of a line with these

Rows = Mapping[str, Mapping[str, Any]]  # name of an image's results -> its line of summary.jsonl


class Thumbnail(NamedTuple):
    """Two small pictures of the same size, as addresses that hold them."""

    photo: str
    mask: str  # transparent where the label is 0


def thumbnail(pixels: np.ndarray, labels: np.ndarray) -> Thumbnail:
    """Of an image (h, w, 3) uint8 and its labels (h, w), a palette's colours."""
    h, w = labels.shape
    longest = max(h, w)
    factor = min(1.0, SIDE_PX / longest)
    size = max(1, round(w * factor)), max(1, round(h * factor))
    photo = Image.fromarray(pixels).reduce(max(1, longest // (2 * SIDE_PX))).resize(size)
    rows, columns = (
        (2 * np.arange(n) + 1) * full // (2 * n) for n, full in ((size[1], h), (size[0], w))
    )
    mask = Image.fromarray(labels[rows[:, None], columns].astype(np.uint8))
    mask.putpalette(palette().ravel().tolist())
    file = io.BytesIO()
    mask.save(file, "PNG", transparency=0, optimize=True)
    return Thumbnail(image_uri(np.asarray(photo)), data_uri(file.getvalue(), "image/png"))


def write_contact_sheet(
    out: Path,
    rows: Rows,
    classes: Sequence[str],
    about: str = "",
    *,
    made: Mapping[str, Thumbnail] | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda names: names,
) -> bool:
    """Writes `index.html` of an output folder; False if the one that is there is another's.

    Args:
      out: the output folder of `predict`.
      rows: of the images that are done.
      classes: their names; the first is value 1 of the PNGs.
      about: how the masks were made, in a line.
      made: thumbnails that are known; the others are kept from the page before, or made of the
        image and its PNG.
      progress: wraps the names of those that are made here, for a progress bar.

    Raises:
      CannotWrite: see `write_atomic`.
    """
    path = out / NAME
    earlier = _earlier(path)
    if earlier is None:
        return False
    thumbnails = {**_kept(earlier, rows), **(made or {})}
    shown = sorted(rows)[:LIMIT]
    if missing := [name for name in shown if name not in thumbnails]:
        thumbnails |= dict(_read(out, rows, progress(missing)))
    colours = palette(len(classes) + 1).tolist()
    content = {
        "classes": [
            {"name": escaped(name), "key": name, "color": colours[i]}
            for i, name in enumerate(classes, 1)
        ],
        "images": [
            {
                "name": escaped(name),
                "key": name,
                "href": _href(out, name),
                **{key: rows[name].get(key) for key in _OF_THE_ROW},
                **thumbnails[name]._asdict(),
            }
            for name in shown
            if name in thumbnails
        ],
    }
    text = _page(content, total=len(rows), about=about)
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))
    return True


def _page(content: Mapping[str, Any], *, total: int, about: str) -> str:
    count = f"{total:,} image{'s' * (total != 1)}"
    if total > LIMIT:
        count = f"The first {LIMIT:,} of {count}, by name"
    folder = files("clipseg_jax.results")
    body = folder.joinpath("contact_sheet.html").read_text("utf-8")
    return page(
        "Masks",
        body.replace("COUNT", escape(count)).replace("ABOUT", escape(about))
        + json_block(_BLOCK, content),
        folder.joinpath("contact_sheet.css").read_text("utf-8"),
        folder.joinpath("contact_sheet.js").read_text("utf-8"),
    )


def _earlier(path: Path) -> dict[str, Any] | None:
    """The content of the page before; None: there is a file that is not of this command."""
    if not os.path.lexists(path):
        return {}
    try:
        with open_regular(path) as file:
            text = file.read(_MOST_BYTES).decode("utf-8")
        block = re.search(rf'<script type="application/json" id="{_BLOCK}">(.*?)</script>', text)
        content = json.loads(block[1]) if block else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _kept(content: Mapping[str, Any], rows: Rows) -> dict[str, Thumbnail]:
    """The thumbnails of a page before whose image and mask are still the same."""
    kept = {}
    images = content.get("images")
    for entry in images if isinstance(images, list) else []:
        if not isinstance(entry, dict) or not isinstance(name := entry.get("key"), str):
            continue
        row = rows.get(name)
        uris = [str(entry.get(key)) for key in Thumbnail._fields]
        same = row is not None and all(row.get(key) == entry.get(key) for key in _OF_THE_ROW)
        if same and all(map(_URI.fullmatch, uris)):
            kept[name] = Thumbnail(*uris)
    return kept


def _read(out: Path, rows: Rows, names: Iterable[str]) -> Iterable[tuple[str, Thumbnail]]:
    """Thumbnails made of files; none of images that are gone or have another size by now."""
    for name in names:
        try:
            labels = read_label(out / f"{name}.png")
            pixels = read_image(rows[name]["image"])
        except BadFile:
            continue
        if pixels.shape[:2] == labels.shape:
            yield name, thumbnail(pixels, labels)


def _href(out: Path, name: str) -> str:
    """The address of the overlay, or of the mask where there is none, beside the page."""
    overlay = f"{name}_overlay.jpg"
    return quote(os.fsencode(overlay if (out / overlay).exists() else f"{name}.png"))
