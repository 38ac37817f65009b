"""The index of a folder of records is checked before it is used: it may come from anywhere."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import Any

from input_pipeline.datasets.images import MAX_PIXELS

_LONGEST_FILE_NAME = 255  # bytes


def check_index(index: dict[str, Any]) -> None:
    """Checks all that is used of an index.

    Raises:
      ValueError: names the split and the part that is wrong.
    """
    splits = index.get("splits")
    if not isinstance(splits, dict):
        raise ValueError("splits is no dictionary")
    for split, stored in splits.items():
        if not isinstance(stored, dict):
            raise ValueError(f"split {split} is no dictionary")
        shards: Any = stored.get("shards")
        names: Any = stored.get("names")
        sizes: Any = stored.get("sizes")
        checks = {
            "source": _is_list(stored.get("source"), lambda each: isinstance(each, str)),
            "labels": isinstance(stored.get("labels"), bool),
            "names": _is_list(names, _is_name) and len(set(names)) == len(names),
            "sizes": _is_list(sizes, _is_size),
            "shards": _is_list(shards, _is_shard)
            and len({shard["file"] for shard in shards}) == len(shards),
            "image_labels": _is_list(
                stored.get("image_labels", []), lambda ids: _is_list(ids, _is_count)
            ),
        }
        if wrong := [key for key, right in checks.items() if not right]:
            raise ValueError(f"split {split}: {', '.join(wrong)} cannot be used")
        counts = {sum(shard["records"] for shard in shards), len(names), len(sizes)}
        if len({*counts, len(stored.get("image_labels", names))}) > 1:
            raise ValueError(f"split {split}: names, sizes and records are not equally many")


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


def _is_name(value: Any) -> bool:
    """Whether results of this name are files below their folder, at a path of no other name."""
    return (
        isinstance(value, str)
        and value == posixpath.normpath(value) != "."
        and not value.startswith(("/", "../"))
        and value != ".."
        and "\0" not in value
        and all(len(part.encode()) <= _LONGEST_FILE_NAME for part in value.split("/"))
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_size(value: Any) -> bool:
    """Whether this is a (height, width) that `read_image` can return."""
    if not _is_list(value, _is_count) or len(value) != 2:
        return False
    return 0 < value[0] * value[1] <= MAX_PIXELS


def _is_shard(value: Any) -> bool:
    """Whether this is an entry of a file beside the index."""
    return (
        isinstance(value, dict)
        and _is_count(value.get("records"))
        and _is_count(value.get("bytes"))
        and isinstance(value.get("file"), str)
        and os.path.basename(value["file"]) == value["file"] not in ("", ".", "..")
        and value["file"].isprintable()  # it stands in messages
    )
