"""What `predict` writes besides masks, made of the masks: overlays, COCO files, a contact sheet."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipseg_jax.predict_records import (
    OVERLAY,
    SCORES,
    SETTINGS,
    SKIPPED,
    SUMMARY,
    Records,
    is_whole_overlay,
    leads_to,
)
from clipseg_jax.results import coco, contact_sheet
from clipseg_jax.results.contact_sheet import Thumbnail
from clipseg_jax.results.label_map import NAME as LABEL_MAP
from clipseg_jax.results.label_map import write_label_map
from clipseg_jax.results.npz import has_scores
from clipseg_jax.results.overlays import write_overlay
from input_pipeline import commands
from input_pipeline.datasets.images import BadFile, BadImage, read_image, read_label
from input_pipeline.text_lists import escaped
from input_pipeline.writing import CannotWrite

FORMATS = ("png", "overlay", "html", *coco.FILES, "npz")
DEFAULT = ("png", "overlay", "html")


def read_formats(given: Sequence[str]) -> frozenset[str]:
    """The values of `--format`, each a name or several between commas; "png" is always one.

    Raises:
      ValueError: an unknown one.
      ModuleNotFoundError: a package of the extra "data" that one needs is not installed.
    """
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"--format {escaped(name)} is none; there are {', '.join(FORMATS)}")
    if any(name in coco.FILES for name in names):
        for package in ("cv2", "pycocotools"):
            importlib.import_module(package)
    return frozenset(names or DEFAULT) | {"png"}


class Results:
    """The results of a run beside its masks."""

    def __init__(
        self,
        records: Records,
        classes: Sequence[str],
        formats: frozenset[str],
        *,
        opacity: float,
        about: str,
    ):
        """See `write_overlay` for `opacity`, `write_contact_sheet` for `about`."""
        self.records, self.out, self.classes = records, records.out, classes
        self.opacity = opacity if "overlay" in formats else None
        self._formats, self._about = formats, about
        self._thumbnails: dict[str, Thumbnail] = {}

    def files_of(self, name: str) -> list[Path]:
        """The files that are written for an image."""
        files = {"png": f"{name}.png", "overlay": f"{name}{OVERLAY}", "npz": f"{name}{SCORES}"}
        return [self.out / file for kind, file in files.items() if kind in self._formats]

    def files_of_all(self) -> list[Path]:
        """The COCO files that are written; other files for all images spare what is there."""
        return [self.out / file for kind, file in coco.FILES.items() if kind in self._formats]

    def files_of_the_folder(self) -> list[Path]:
        """The files for all images, of which none may be a folder."""
        html = [contact_sheet.NAME] if "html" in self._formats else []
        names = [*html, LABEL_MAP, SUMMARY, SETTINGS, SKIPPED]
        return [*self.files_of_all(), *(self.out / name for name in names)]

    def without(self, target: Path) -> str:
        """What else helps where `target` cannot be written; "" where nothing does."""
        html = target.name == contact_sheet.NAME
        return ", or leave html out of --format" if html else ""

    def remove(self, names: Iterable[str]) -> None:
        """Removes what is made of masks that are made again, in formats that may not be asked for.

        Raises:
          CannotWrite: it cannot be removed.
        """
        for name in names:
            for suffix in (OVERLAY, SCORES):
                path = self.out / f"{name}{suffix}"
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise CannotWrite(f"cannot remove {path}: {error.strerror}") from error

    def without_scores(
        self, images: Sequence[tuple[Path, str]], longest_px: int
    ) -> list[tuple[Path, str]]:
        """The images, with the names of their results, that have a mask but no whole scores."""
        return [
            (path, name)
            for path, name in images
            if name in self.records.rows
            and not has_scores(self.out / f"{name}{SCORES}", longest_px)
        ]

    def keep(self, name: str, thumbnail: Thumbnail) -> None:
        """Keeps the thumbnail of a mask that was just made, for the contact sheet."""
        if "html" in self._formats and len(self._thumbnails) < contact_sheet.LIMIT:
            self._thumbnails[name] = thumbnail

    def finish(self, images: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
        """Writes all that is not there yet; returns the images that it cannot be made for.

        `images`: of this command, with the names of their results.

        Raises:
          CannotWrite: see `write_atomic`.
        """
        failed = [] if self.opacity is None else self._write_overlays(images, self.opacity)
        if not write_label_map(self.out, ("background", *self.classes)):
            _say_kept(self.out / LABEL_MAP)
        for kind in coco.FILES:
            if kind in self._formats and not self._is_new(kind):
                unread = coco.write_coco(
                    self.out, self.records.rows, self.classes, kind, progress=_bar(kind)
                )
                failed += [
                    (self.out / f"{name}.png", "is no mask of these classes") for name in unread
                ]
                commands.say(escaped(f"annotations in {self.out / coco.FILES[kind]}"))
        self.write_contact_sheet()
        return failed

    def write_contact_sheet(self) -> None:
        """Writes `index.html` of all images that are done so far, if it was asked for.

        Raises:
          CannotWrite: see `write_atomic`.
        """
        if "html" not in self._formats or not self.records.rows:
            return
        path = self.out / contact_sheet.NAME
        if contact_sheet.write_contact_sheet(
            self.out,
            self.records.rows,
            self.classes,
            self._about,
            made=self._thumbnails,
            progress=_bar("html"),
        ):
            commands.say(escaped(f"contact sheet in {path}"))
        else:
            _say_kept(path)

    def _write_overlays(
        self, images: Sequence[tuple[Path, str]], opacity: float
    ) -> list[tuple[Path, str]]:
        missing = [
            (path, name)
            for path, name in images
            if name in self.records.rows and not is_whole_overlay(self.out, name)
        ]
        failed = []
        for path, name in _bar("overlay")(missing):
            try:
                labels = read_label(self.out / f"{name}.png", len(self.classes) + 1)
                pixels = read_image(path)
                if pixels.shape[:2] != labels.shape:
                    raise BadImage(f"{path}: was replaced since it was segmented; run again")
                write_overlay(
                    self.out / f"{name}{OVERLAY}",
                    pixels,
                    labels,
                    ("background", *self.classes),
                    self.records.rows[name]["classes"],
                    opacity,
                )
            except BadFile as error:
                failed.append((path, str(error).removeprefix(f"{path}: ")))
        return failed

    def _is_new(self, kind: str) -> bool:
        """Whether the COCO file is whole and not older than any mask."""
        path = self.out / coco.FILES[kind]
        if not coco.is_whole(self.out, kind):
            return False
        masks = (self.out / f"{name}.png" for name in self.records.rows)
        sources = (self.out / SUMMARY, *masks)
        return path.stat().st_mtime_ns >= max(each.stat().st_mtime_ns for each in sources)


def about(settings: dict[str, Any]) -> str:
    """How masks were made, in a line, from what settings.json has."""
    refined = settings["refine"]
    parts = [settings["method"], "" if refined == "none" else f"refinement {refined}"]
    return ", ".join([*filter(None, parts), f"weights {Path(settings['weights']).name}"])


def _bar(kind: str) -> Callable[[Sequence[Any]], Iterable[Any]]:
    return lambda items: tqdm(items, unit="image", desc=kind, disable=None, leave=False)


def _say_kept(path: Path) -> None:
    text = f"{path} is not of this command and stays; move it to get this command's"
    commands.say(escaped(text), error=True)


def check_targets(images: Sequence[tuple[Path, str]], results: Results, *, new: bool) -> None:
    """Checks that no result replaces an image, nor, in a new output folder, a file of the user.

    Args:
      images: files, and the names of their results.
      results: the results in the output folder.
      new: whether that folder is a new one.

    Raises:
      ValueError: one would, a folder is where a file is to be, or a link in the output folder leads
        out of it.
    """
    out = results.out
    below: dict[str, Path] = {}  # folder at the top of `out` -> one of its images
    for path, name in images:
        if len(parts := Path(name).parts) > 1:
            below.setdefault(parts[0], path)
    for target in results.files_of_the_folder():
        if target.is_dir():
            raise ValueError(
                f"{target} is a folder, and this command writes a file of that name; rename it, or "
                f"choose another --out{results.without(target)}"
            )
        if target.name in below:
            raise ValueError(
                f"the masks of {below[target.name]} and others of the folder {target.name} would "
                f"be in {target}, which is a file of this command; rename that folder"
                f"{results.without(target)}"
            )
    for folder in {os.path.dirname(name) for _, name in images}:
        if elsewhere := leads_to(out, folder):
            raise ValueError(
                f"{out / folder} is a link that leads out of {out}, to {elsewhere}; remove it, or "
                "choose another --out"
            )
    inputs = {os.path.realpath(path) for path, _ in images}
    written = results.files_of_all()
    for path, name in images:
        for target in results.files_of(name):
            if os.path.realpath(target) in inputs:
                raise ValueError(
                    f"the result of {path} would replace the image {target}; choose another --out"
                )
            written.append(target)
    for target in written if new else ():
        if os.path.lexists(target):
            raise ValueError(
                f"{target} exists and is not of this command; choose another --out, or pass "
                "--overwrite to replace it"
            )
