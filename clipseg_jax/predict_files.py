"""The files of `predict`: which images it takes, and what their results are called."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clipseg_jax.predict_records import OVERLAY, Records, recorded_results
from input_pipeline.datasets.layout import IMAGE_SUFFIXES
from input_pipeline.walk import NotAFile, check_regular, find_files


class Source(NamedTuple):
    """An image of the command line."""

    path: Path
    relative: Path  # below the folder that was given; of a file that was given, its name


LeftOut = list[tuple[Path, str]]  # (path, reason)


def find_images(paths: Iterable[str | Path]) -> list[tuple[Path, str]]:
    """(file, name of its results) of files and, recursively, folders; names are unique.

    Raises:
      FileNotFoundError: a path that does not exist, or a folder without images.
    """
    sources, _ = list_images(paths)
    return list(zip([source.path for source in sources], result_names(sources), strict=True))


def list_images(
    paths: Iterable[str | Path], out: Path | None = None
) -> tuple[list[Source], LeftOut]:
    """The images of files and folders, and what is left out, with the reason.

    Links are followed; only regular files are images. Results of this command are none: neither
    what lies in `out`, the output folder, nor what a `summary.jsonl` names beside or above it.

    Raises:
      FileNotFoundError: a path that does not exist, or a folder without images.
      ValueError: `out` is one of the folders.
    """
    sources: list[Source] = []
    left_out: LeftOut = []
    for path in map(Path, paths):
        if path.is_dir():
            if out is not None and out.is_dir() and path.samefile(out):
                raise ValueError(
                    f"{path} is to be searched for images and is the output folder as well; "
                    "choose another --out, or images and results would be mixed"
                )
            found = find_files(path, IMAGE_SUFFIXES, leave_out=() if out is None else [out])
            images, results = _without_results(path, found.files, out)
            left_out += found.left_out + results
            if not images:
                more = "".join(f"; {each} {reason}" for each, reason in found.left_out[:3])
                kinds = ", ".join(IMAGE_SUFFIXES)
                raise FileNotFoundError(f"no images ({kinds}) in folder {path}{more}")
            sources += [Source(image, image.relative_to(path)) for image in images]
            continue
        try:
            check_regular(path)
            sources.append(Source(path, Path(path.name)))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is neither a file nor a folder") from error
        except NotAFile as error:
            left_out.append((path, str(error).removeprefix(f"{path} ").partition(",")[0]))
    return _once(sources, left_out), left_out


def result_names(sources: Sequence[Source], records: Records | None = None) -> list[str]:
    """The name of each image's results below the output folder, without suffix; unique.

    It is the image's path without suffix. The suffix or a number is added where two names would
    meet, also on file systems that ignore case or the Unicode form. An image that has results
    already keeps their name, and no other image gets it.
    """
    stems = [str(source.relative.with_suffix("")) for source in sources]
    counts = Counter(map(_key, stems))
    # A result must not have the name of a folder that other results lie in.
    taken = {_key(str(parent)) for source in sources for parent in source.relative.parents}
    last: Counter[str] = Counter()  # number of the last name with this stem

    def candidates(source: Source, stem: str) -> Iterator[str]:
        if counts[_key(stem)] == 1 or (records and records.holds(stem, source.path)):
            yield stem
        longer = str(source.relative).replace(".", "_")
        if not last[longer]:
            yield longer
        while True:
            last[longer] += 1
            yield f"{longer}_{last[longer] + 1}"

    known = [records.name_of(source.path) if records else None for source in sources]
    taken |= {key for name in known if name for key in _keys(name)}
    names = []
    for source, stem, name in zip(sources, stems, known, strict=True):
        if name is None:
            name = next(
                each
                for each in candidates(source, stem)
                if taken.isdisjoint(_keys(each))
                and (records is None or records.is_free(each, source.path))
            )
            taken.update(_keys(name))
        names.append(name)
    return names


def _keys(name: str) -> tuple[str, str]:
    return _key(f"{name}.png"), _key(f"{name}{OVERLAY}")


def _key(name: str) -> str:
    """Equal for names that a file system may take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _without_results(
    root: Path, files: Sequence[Path], out: Path | None
) -> tuple[list[Path], LeftOut]:
    """The files that no `summary.jsonl` beside them, above them or in `out` names as a result."""
    folders = {file.parent for file in files}
    folders |= {above for each in folders for above in each.parents if above.is_relative_to(root)}
    results = {folder: recorded_results(folder) for folder in sorted(folders)}
    if out is not None and out.is_dir() and out.resolve() in root.resolve().parents:
        back = os.path.relpath(root.resolve(), out.resolve())
        inside = (os.path.relpath(each.relative_to(out), back) for each in recorded_results(out))
        results[out] = {root / each for each in inside}
    every = set().union(*results.values()) if results else set()
    images = [file for file in files if file not in every]
    left_out: LeftOut = []
    listed = set(files)
    for folder, named in results.items():
        if count := len(named & listed):
            left_out.append((folder, f"holds {count} results of this command, which are no images"))
    return images, left_out


def _once(sources: Sequence[Source], left_out: LeftOut) -> list[Source]:
    """The sources without files that were given twice, which are added to `left_out`."""
    folders: dict[Path, str] = {}
    seen: set[tuple[str, str]] = set()
    once = []
    for source in sources:
        parent = source.path.parent
        if parent not in folders:
            folders[parent] = os.path.realpath(parent)
        key = (folders[parent], source.path.name)
        if key in seen:
            left_out.append((source.path, "is given twice"))
        else:
            seen.add(key)
            once.append(source)
    return once
