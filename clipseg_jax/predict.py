"""Segments image files with the class names given on the command line.

    python -m clipseg_jax.predict photo.jpg --classes "cat, sofa, tv monitor" --weights ViT-B-16.pt

takes files and folders. For each image it writes an index PNG (0 is background, 1 the first class),
an overlay with a legend (at most 33 megapixels), and a line of `summary.jsonl` with each class's
share of the pixels and mean score; for the folder a contact sheet, `index.html`. `--format` has
more. Images that are done are skipped when the command runs again.

What cannot be used is named, counted and listed in `skipped.jsonl`: unreadable images, images of
more than 178 million pixels, what is no regular file, results of this command. The exit status is 0
if at least one image has masks, 2 if none has or the command is wrong, 130 after Ctrl-C.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import argparse
import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import DecompressionBombWarning
from tqdm import tqdm

from clipseg_jax import predict_options
from clipseg_jax.core import compile_cache
from clipseg_jax.core.command import exit_code
from clipseg_jax.core.interrupt import Interrupted, signals
from clipseg_jax.core.label_images import save_labels
from clipseg_jax.core.run_lock import RunLock
from clipseg_jax.predict_files import LeftOut, find_images, list_images, result_names
from clipseg_jax.predict_model import find_model
from clipseg_jax.predict_records import (
    OVERLAY,
    SCORES,
    SKIPPED,
    Records,
    changed_settings,
    stamp,
    write_settings,
    write_skipped,
)
from clipseg_jax.predict_results import Results, about, check_targets, read_formats
from clipseg_jax.results.contact_sheet import Thumbnail, thumbnail
from clipseg_jax.results.npz import save_scores
from clipseg_jax.results.overlays import write_overlay
from clipseg_jax.segmentation import ClassScores, Segmentation
from clipseg_jax.segmenter import Segmenter
from clipseg_jax.segmenters.runner import Runner
from input_pipeline import commands
from input_pipeline.datasets.images import BadImage, read_image
from input_pipeline.text_lists import escaped
from input_pipeline.writing import CannotWrite, remove_temporary

__all__ = ["find_images", "main", "run", "save"]

_MOST_SHOWN = 20  # lines on the screen; skipped.jsonl has all
# What the operating system says of a name that it cannot take; other images have other names.
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR)

Image = tuple[Path, str]  # a file, and the name of its results
T = TypeVar("T")


def run(args: argparse.Namespace) -> None:
    """Segments the images of the command line.

    Raises:
      ValueError, OSError: a wrong command, or no image has masks in the end.
      Interrupted: Ctrl-C or SIGTERM.
    """
    compile_cache.enable()
    formats = read_formats(args.format)
    settings, segmenter = find_model(args)
    out = Path(args.out)
    sources, left_out = list_images(args.images, out)
    with _locked(out):
        records = Records(out)
        new, other = _compare(out, settings, args.overwrite)
        names = result_names(sources, records)
        images = list(zip([source.path for source in sources], names, strict=True))
        results = Results(
            records, settings["classes"], formats, opacity=args.opacity, about=about(settings)
        )
        check_targets(images, results, new=new and not args.overwrite)
        todo = [
            (path, name)
            for path, name in images
            if args.overwrite or not records.is_done(name, path)
        ]
        if len(todo) < len(images):
            commands.say(f"{len(images) - len(todo)} of {len(images)} images already have masks")
        for folder in {out, *((out / name).parent for name in names)}:
            remove_temporary(folder, below=False)
        failed: LeftOut = []
        if todo:
            segmenter()  # before anything is changed
            if not new:
                results.remove([name for _, name in todo])
            records.forget(None if other else [name for _, name in todo])
            write_settings(out, settings)
            failed = _segment(segmenter(), todo, results)
        made, none = len(todo) - len(failed), len(failed) == len(images)
        if not none:
            if "npz" in formats:
                failed += _store_scores(segmenter, images, results, args.scores_px)
            failed += results.finish(images)
        write_skipped(out, left_out + failed)
        _report(out, todo, left_out + failed, made=made)
        if none:
            raise ValueError(f"no image could be segmented; {len(left_out + failed)} were skipped")


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The output folder under its lock; after an error, folders made for it do not stay empty."""
    new = [each for each in (out, *out.parents) if not os.path.lexists(each)]
    try:
        with RunLock(out):
            yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def _segment(segmenter: Segmenter | Runner, todo: Sequence[Image], results: Results) -> LeftOut:
    """Segments images and stores the results; returns those that failed, with the reasons."""
    stamps = [stamp(path) for path, _ in todo]

    def store(i: int, result: Segmentation) -> None:
        path, name = todo[i]
        small = save(result, path, results.out / name, results.opacity)
        results.records.add(name, path, stamps[i], result.summary())
        results.keep(name, small)

    try:
        return _each(segmenter([path for path, _ in todo]), todo, store)
    except Interrupted:
        results.write_contact_sheet()
        raise


def _store_scores(
    segmenter: Callable[[], Segmenter | Runner],
    images: Sequence[Image],
    results: Results,
    longest_px: int,
) -> LeftOut:
    """Stores the scores of images that have masks; returns those that failed, with the reasons."""
    todo = results.without_scores(images, longest_px)
    if not todo:
        return []

    def store(i: int, scores: ClassScores) -> None:
        save_scores(results.out / f"{todo[i][1]}{SCORES}", scores)

    return _each(segmenter().scores([path for path, _ in todo], longest_px), todo, store)


def _each(
    stream: Iterable[tuple[int, T | BadImage]], todo: Sequence[Image], use: Callable[[int, T], None]
) -> LeftOut:
    """Calls `use` with the index and the result of each image; returns those that failed, and why.

    Raises:
      Interrupted: by a signal, after an image.
    """
    failed: LeftOut = []
    with signals() as caught, tqdm(total=len(todo), unit="image", disable=None) as bar:
        caught.defer()
        for count, (i, result) in enumerate(stream, 1):
            path, _ = todo[i]
            try:
                if isinstance(result, BadImage):
                    raise result
                use(i, result)
            except BadImage as error:
                failed.append((path, str(error).removeprefix(f"{path}: ")))
            except CannotWrite as error:
                if getattr(error.__cause__, "errno", None) not in _OF_THE_NAME:
                    raise
                failed.append((path, str(error).partition(";")[0]))
            bar.update()
            if count < len(todo) and (number := caught.stop()):
                raise Interrupted(
                    f"stopped after {count} of {len(todo)} images; run the same command again to "
                    "resume",
                    number,
                )
        caught.at_once()
    return failed


def save(result: Segmentation, image: Path, stem: Path, opacity: float | None = 0.5) -> Thumbnail:
    """Writes `stem`_overlay.jpg and then `stem`.png; returns the thumbnail of both.

    `opacity`: of the overlay's colours; None: no overlay.

    Raises:
      BadImage: the image is gone or another one since it was segmented.
      CannotWrite: see `write_atomic`.
    """
    pixels = read_image(image)
    if pixels.shape[:2] != result.labels.shape:
        raise BadImage(f"{image}: was replaced while it was segmented; run again")
    if opacity is not None:
        path = stem.with_name(f"{stem.name}{OVERLAY}")
        write_overlay(path, pixels, result.labels, result.names, result.summary(), opacity)
    save_labels(stem.with_name(f"{stem.name}.png"), result.labels, coloured=True)
    return thumbnail(pixels, result.labels)


def _compare(out: Path, settings: dict[str, Any], overwrite: bool) -> tuple[bool, bool]:
    """Whether the output folder is a new one, and whether its masks have other settings.

    Raises:
      ValueError: they have, or settings.json is damaged, and they are not to be overwritten.
    """
    try:
        changed = changed_settings(out, settings)
    except ValueError:
        if not overwrite:
            raise
        return False, True
    if changed and not overwrite:
        raise ValueError(
            f"{out} holds masks of a run with other settings ({', '.join(changed)}); "
            "choose another --out, or pass --overwrite to replace them"
        )
    return changed is None, bool(changed)


def _report(out: Path, todo: Sequence[Image], skipped: LeftOut, *, made: int) -> None:
    for path, reason in skipped[:_MOST_SHOWN]:
        commands.say(escaped(f"skipped: {path}: {reason}"), error=True)
    if len(skipped) > _MOST_SHOWN:
        more = f"skipped: {len(skipped) - _MOST_SHOWN} more, in {out / SKIPPED}"
        commands.say(more, error=True)
    if todo or skipped:
        commands.say(escaped(f"{made} masks in {out}, {len(skipped)} images skipped"))


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings are printed as one line, without the place in the code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        with tqdm.external_write_mode(sys.stderr):
            commands.say(escaped(f"warning: {message}"), error=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        # Larger images than Pillow likes are read in little memory, up to a limit of our own.
        warnings.simplefilter("ignore", DecompressionBombWarning)
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, after one line of an error if that is not 0."""
    args = predict_options.parser(__doc__ or "").parse_args(argv)
    with _plain_warnings(), signals():
        return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
