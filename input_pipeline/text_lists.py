"""The one reader of text files that users write: split lists, label lists, files of classes.

Editors and shells save them in several encodings; what cannot be read is told with the list's name,
the line and the remedy.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator

from input_pipeline.walk import open_regular

_MAX_BYTES = 1 << 27  # thirty times COCO's lists
_MAX_LINES = 1 << 21  # each takes 200 bytes, however short; COCO's lists have 1.2e5
_MAX_WORDS = 1 << 22
_MAX_LINE = 1 << 14
_MESSAGE = 500  # letters
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class BadList(ValueError):  # noqa: N818
    """A list that cannot be used; the message names the list, the line and the remedy."""


def numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, text without blanks around it) of each line that is not blank.

    Takes UTF-8, and UTF-16 and UTF-32 with a byte order mark; lines end with LF, CRLF or CR.

    Raises:
      BadList: empty, in another encoding, too large, or no text.
      OSError: missing, not a file (see `open_regular`), or not readable.
    """
    with open_regular(path) as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise BadList(f"{path} is larger than {_MAX_BYTES >> 20} MB, no list; name another file")
    text = _decode(content, path).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise BadList(f"{path} is an empty list; fill it, or delete it")
    if text.count("\n") > _MAX_LINES:
        raise BadList(f"{path} has more than {_MAX_LINES} lines, no list; name another file")
    for number, line in enumerate(text.split("\n"), 1):
        control = _CONTROL.search(line)
        if control or len(line) > _MAX_LINE:
            what = (
                f"holds the control character {control[0]!r}"
                if control
                else f"has {len(line)} characters"
            )
            raise BadList(f"{path}, line {number} {what}: no list; is it saved as UTF-8 text?")
        if line.strip():
            yield number, line.strip()


def read_list(path: str | os.PathLike[str]) -> list[list[str]]:
    """The words of each line of a list of files, without blank lines.

    Raises:
      BadList: see `numbered_lines`; or a name leaves the folder that it is for.
      OSError: see `numbered_lines`.
    """
    lines, count = [], 0
    for number, line in numbered_lines(path):
        words = line.split()
        count += len(words)
        if count > _MAX_WORDS:
            raise BadList(f"{path} has more than {_MAX_WORDS} words, no list; name another file")
        for word in words if ".." in line else ():
            if ".." in word.split("/"):
                raise BadList(
                    f"{path}, line {number}: {word!r} leaves the dataset's folder; list names "
                    f"below it"
                )
        lines.append(words)
    return lines


def printable(text: str) -> str:
    """A text of a file for a message: its beginning, escaped if no terminal can show it."""
    text = text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]}..."
    return text if text.isprintable() else ascii(text)


def escaped(text: str) -> str:
    """`text` in one line that steers no terminal: each letter that is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """Another library's message in one printable line, or the error's type if it has none."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def _decode(content: bytes, path: str | os.PathLike[str]) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadList(
            f"{path}, line {line}, is not {encoding.removesuffix('-sig').upper()}; save the list "
            f"as UTF-8"
        ) from error
