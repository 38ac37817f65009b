"""The files below a dataset's folders, by the names that lists give them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from input_pipeline.walk import find_files

_LEFT_OUT_SHOWN = 5


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
