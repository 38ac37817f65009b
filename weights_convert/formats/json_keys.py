"""Objects of a stranger's JSON whose keys are all different."""

from __future__ import annotations

from typing import Any


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of `json.loads` for objects that have no key twice.

    Raises:
      ValueError: a key is listed twice; without it the last one would win, without a word.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.60} is listed twice")
    return content
