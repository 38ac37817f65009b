"""What a work directory was made with: `config.json`, and `content.json` of the files it names.

A work directory holds the results of one recipe. A path may change between runs, for instance on
another machine, as long as the content behind it is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clipseg_jax.core.config_names import is_free, with_new_names
from clipseg_jax.core.files import write_json
from clipseg_jax.stages.data import find_dataset

_CONFIG, _CONTENT = "config.json", "content.json"
_ROOT = "dataset.root"
_FILES = ("weights", "trained_weights", "init_weights", "file")  # values that name files

Content = dict[str, Any]  # path, digest; of files also size and time of the last change


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

    Raises:
      ValueError: other values, or other content behind a path.
    """
    path = workdir / _CONFIG
    now = json.loads(json.dumps(config.to_dict()))
    if path.exists() and any(workdir.glob("*.done.json")):
        before = with_new_names(flat(json.loads(path.read_text("utf-8"))))
        if changed := [*_changes(before, flat(now), config, workdir, given)]:
            raise ValueError(
                f"{workdir} holds results of another configuration ({'; '.join(changed)}); choose "
                "another --workdir, or delete it"
            )
    write_json(path, now)


def record_content(config: ConfigDict, workdir: Path) -> None:
    """Notes what is behind the config's paths, as far as it exists, for later runs."""
    recorded = _recorded(workdir)
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
    recorded = _recorded(workdir)
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
            if current is None or current["digest"] != content["digest"]:
                yield f"{name}: {old!r} -> {new!r}" if old != new else f"{name}: other content"
        elif old != new:
            yield f"{name}: {old!r} -> {new!r}"


def _recorded(workdir: Path) -> dict[str, Content]:
    path = workdir / _CONTENT
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _is_path(name: str, value: object) -> bool:
    return isinstance(value, str) and (name == _ROOT or name.rpartition(".")[2] in _FILES)


def _content(config: ConfigDict, name: str, value: str, recorded: Content | None) -> Content | None:
    """What is behind the path `value`; None: nothing. What is recorded is not read again."""
    known = recorded if recorded and recorded["path"] == value else None
    if name == _ROOT:
        names = known["digest"] if known else _dataset_digest(config.dataset)
        return {"path": value, "digest": names} if names else None
    path = Path(value)
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    if not files:  # nothing there, or a word such as "random"
        return None
    states = [each.stat() for each in files]
    size = sum(state.st_size for state in states)
    changed_ns = max(state.st_mtime_ns for state in states)
    if known and (known["size"], known["changed_ns"]) == (size, changed_ns):
        return known
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{each.relative_to(path)} {inner}\n".encode())
    return {"path": value, "digest": digest.hexdigest(), "size": size, "changed_ns": changed_ns}


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
