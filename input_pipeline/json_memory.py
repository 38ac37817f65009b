"""A bound on the memory that a stranger's JSON takes, from its bytes, before it is parsed.

Three bytes, `[],`, become a hundred in memory, so that a limit of a file's size is not enough.
"""

from __future__ import annotations

# Python's bytes for an object, a list and an entry; small ones, of CPython 3.11.
_COSTS = {b"{": 250, b"[": 90, b",": 40}
_ALWAYS = 1 << 29  # bytes of memory
_TIMES = 12  # the file's size; COCO's objects need 6, an index of records 11, a vocab.json 3


def check_json(content: bytes) -> None:
    """Refuses JSON that takes a lot of memory, for itself and in relation to its size.

    Raises:
      ValueError: it consists of many small lists, objects or numbers.
    """
    memory = sum(cost * content.count(mark) for mark, cost in _COSTS.items())
    if memory > max(_ALWAYS, _TIMES * len(content)):
        raise ValueError(
            f"its lists and objects would take {memory >> 20:,} MB of memory, too many for a file "
            f"of {len(content) >> 20:,} MB"
        )
