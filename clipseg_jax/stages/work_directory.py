"""What a work directory was made with: `config.json`, and `content.json` of the files it names.

A work directory holds the results of one recipe. A path may change between runs, for instance on
another machine, as long as the content behind it is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clipseg_jax.core.config_names import is_free, with_new_names
from clipseg_jax.core.files import read_json, write_json
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.run_record import RUNS
from weights_convert.named.find import content_files, find_cached, is_name

LOG = "log.txt"  # what a run prints, where `reproduce` starts it
REPORT = "report.html"
CONFIG, _CONTENT = "config.json", "content.json"
_ROOT = "dataset.root"
_FILES = ("weights", "trained_weights", "init_weights", "file")  # values that name files

_DATA = "data"  # the stage that reads nothing but the section `dataset`

# path, digest; of files also their absolute path and their stamp, of one file its sha256
Content = dict[str, Any]


def flat(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Values by their full names, such as "dataset.root"."""
    out: dict[str, object] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def check(config: ConfigDict, workdir: Path, given: Collection[str] = ()) -> None:
    """Writes the config, or checks that the work directory holds results of the same one.

    Values that an earlier version did not have may be anything unless they are in `given`, the
    names on the command line; those that this version does not have any more must have been None.
    What no finished stage has read may change: a failed start locks nothing.

    Raises:
      ValueError: other values, or other content behind a path; or a damaged file.
    """
    path = workdir / CONFIG
    now = json.loads(json.dumps(config.to_dict()))
    if path.exists() and any(workdir.glob("*.done.json")):
        remedy = (
            "if the configuration is the same as before delete this file and run again, otherwise "
            "choose another --workdir"
        )
        before = with_new_names(flat(read_json(path, remedy)))
        changed = [*_changes(before, flat(now), config, workdir, given)]
        if changed and _only_data(workdir):
            changed = [each for each in changed if each.startswith("dataset.")]
        if changed:
            raise ValueError(
                f"{workdir} holds results of another configuration ({'; '.join(changed)}); choose "
                "another --workdir, or delete it"
            )
    write_json(path, now)


def differences(config: ConfigDict, workdir: Path) -> dict[str, tuple[object, object]]:
    """Name -> (the value that the work directory was made with, that of `config`), if they differ.

    Free values and paths don't count, nor values that the version that made it did not have.

    Raises:
      ValueError: a damaged `config.json`. OSError: there is none.
    """
    made = with_new_names(flat(read_json(workdir / CONFIG, "delete it")))
    now = flat(json.loads(json.dumps(config.to_dict())))
    return {
        name: (made[name], now[name])
        for name in sorted(made.keys() & now.keys())
        if made[name] != now[name] and not (is_free(name) or names_path(name))
    }


def record_content(config: ConfigDict, workdir: Path) -> None:
    """Notes what is behind the config's paths, as far as it exists, for later runs."""
    recorded = recorded_content(workdir)
    values = flat(config.to_dict())
    paths = {name: value for name, value in values.items() if _is_path(name, value)}
    current = {
        name: content
        for name, value in paths.items()
        if (content := _content(config, name, str(value), recorded.get(name)))
    }
    if current != recorded:
        write_json(workdir / _CONTENT, current)


def _changes(
    before: dict[str, object],
    after: dict[str, object],
    config: ConfigDict,
    workdir: Path,
    given: Collection[str],
) -> Iterator[str]:
    """What differs between two flat configs, one line each."""
    recorded = recorded_content(workdir)
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if is_free(name):
            continue
        if name not in after:
            if old is not None:
                yield f"{name}: {old!r} -> no such value any more"
        elif name not in before:
            if name in given:
                yield f"{name}: no such value -> {new!r}"
        elif _is_path(name, new) and (content := recorded.get(name)):
            current = _content(config, name, str(new), content)
            if current is None and old == new and is_name(str(new)):
                continue  # not downloaded here, because no stage to come needs it
            if current is None or current["digest"] != content["digest"]:
                yield f"{name}: {old!r} -> {new!r}" if old != new else f"{name}: other content"
        elif old != new:
            yield f"{name}: {old!r} -> {new!r}"


def _only_data(workdir: Path) -> bool:
    """Whether the stage `data` has finished and no other has left anything."""
    left = {path.name for path in workdir.iterdir() if not path.name.startswith(".")}
    return left <= {CONFIG, _CONTENT, f"{_DATA}.done.json", RUNS, REPORT, LOG}


def recorded_content(workdir: Path) -> dict[str, Content]:
    """What was behind the config's paths, by the names of the values.

    Raises:
      ValueError: a damaged file.
    """
    path = workdir / _CONTENT
    if not path.exists():
        return {}
    remedy = "delete it and run again with the same paths as before"
    recorded = read_json(path, remedy)
    for name, content in recorded.items():
        texts = [content.get(key) for key in ("path", "digest")] if type(content) is dict else [0]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path} is damaged ({name}: {content!r:.60}); {remedy}")
    return recorded


def checksums(workdir: Path) -> dict[str, str]:
    """Name of a config value -> the sha256 of the file that it named; "": a folder has none.

    Raises:
      ValueError: `content.json` is damaged.
    """
    return {name: str(each.get("sha256", "")) for name, each in recorded_content(workdir).items()}


def names_path(name: str) -> bool:
    """Whether the value called `name` is a file or folder, whose place may change."""
    return name == _ROOT or name.rpartition(".")[2] in _FILES


def _is_path(name: str, value: object) -> bool:
    return isinstance(value, str) and names_path(name)


def _content(config: ConfigDict, name: str, value: str, recorded: Content | None) -> Content | None:
    """What is behind the path `value`; None: nothing. What is recorded is not read again."""
    known = recorded if recorded and recorded["path"] == value else None
    if name == _ROOT:
        names = known["digest"] if known else _dataset_digest(config.dataset)
        return {"path": value, "digest": names} if names else None
    path = find_cached(value) or Path(value)
    if value.startswith("hf:") and path.exists():
        files = content_files(path)  # the hub's cache may hold more of a repository later
    else:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:  # nothing there, or a word such as "random"
        return None
    stamp, absolute = _stamp(files), str(path.resolve())
    if known and known.get("stamp") == stamp:
        return known | {"absolute": absolute}
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{each.relative_to(path)} {inner}\n".encode())
    one = {"sha256": inner} if files == [path] else {}
    # A relative path leads nowhere from another folder, where the results may be used.
    known = {"path": value, "absolute": absolute, "digest": digest.hexdigest(), "stamp": stamp}
    return known | one


def _stamp(files: Sequence[Path]) -> str:
    """Changes whenever a file does, even if its date is set back: the kernel's ctime is in it."""
    digest = hashlib.sha256()
    for each in files:
        state = each.stat()
        stamp = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        digest.update(f"{each.name} {stamp}\n".encode())
    return digest.hexdigest()


def _dataset_digest(config: ConfigDict) -> str | None:
    """Of the names of all images of the config's splits; None where one is missing."""
    dataset = find_dataset(config)
    splits = sorted({config[key] for key in config if key == "split" or key.endswith("_split")})
    digest = hashlib.sha256()
    try:
        for split in splits:
            names = [example.name for example in dataset.index(config.root, split, labels=False)]
            digest.update(json.dumps([split, names]).encode())
    except (FileNotFoundError, ValueError):
        return None
    return digest.hexdigest()
