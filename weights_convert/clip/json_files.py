"""JSON that others wrote beside weights: configs, vocabularies, indices of shards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from input_pipeline.json_memory import check_json
from weights_convert.errors import CheckpointError
from weights_convert.formats.json_keys import once_each

MOST_BYTES = 64 * 2**20  # tokenizer.json of a large vocabulary has 20 MB


def read_bytes(path: Path) -> bytes:
    """The content of a small file.

    Raises:
      CheckpointError: no regular file, or more than 64 MiB. OSError: it cannot be read.
    """
    if not path.is_file():  # a pipe would never end
        raise CheckpointError(f"{path} is no regular file; download it again")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{path} has more than {MOST_BYTES:,} bytes; download it again")
    return data


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file, with or without a byte order mark.

    Raises:
      CheckpointError: no regular file, more than 64 MiB, or not UTF-8. OSError: it cannot be read.
    """
    return _decoded(read_bytes(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; its numbers are finite, and no object has a key twice.

    Raises:
      CheckpointError: another content; the message names the file. OSError: it cannot be read.
    """
    return parse_json(read_bytes(path), str(path))


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """The object in the bytes of a JSON file, as `read_json`.

    Raises:
      CheckpointError: another content; the message names `source`.
    """
    text = _decoded(data, source)
    try:
        check_json(text.encode())
        content = json.loads(
            text, object_pairs_hook=once_each, parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise CheckpointError(f"{source} is nested too deep; download it again") from error
    except ValueError as error:
        raise CheckpointError(f"{source} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{source} holds a JSON {type(content).__name__}, not an object; download it again"
        )
    return content


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{source} is not UTF-8 text (byte {error.start}); save it as UTF-8 or download it "
            "again"
        ) from error


def section(content: dict[str, Any], name: str) -> dict[str, Any]:
    """The object `content[name]`; empty where it is absent or null.

    Raises:
      ValueError: something else than an object.
    """
    value = content.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.60}, not an object")
    return value or {}


def whole_number(content: dict[str, Any], name: str, default: int) -> int:
    """The integer `content[name]`, from 1 on; `default` where it is absent or null.

    Raises:
      ValueError: something else.
    """
    value = default if content.get(name) is None else content[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(f"{name} is {value!r:.60}, not a whole number from 1 on")
    return value


def fraction(content: dict[str, Any], name: str, default: float) -> float:
    """The number `content[name]`, above 0 and below 1; `default` where it is absent.

    Raises:
      ValueError: something else.
    """
    value = content.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{name} is {value!r:.60}, not a number above 0 and below 1")
    return float(value)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.60} is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
