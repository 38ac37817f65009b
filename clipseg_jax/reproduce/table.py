"""The table of all rows, as table.md, table.json and table.html."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipseg_jax.core.files import read_json, write_atomic, write_json
from clipseg_jax.core.html import escape, page
from clipseg_jax.reproduce.results import DONE, Entry, Number
from clipseg_jax.reproduce.verdicts import RULE, printed
from input_pipeline.text_lists import escaped, printable

_JSON, _MD, _HTML = "table.json", "table.md", "table.html"
_TITLE = "Published numbers, and ours"
_HEAD = (
    *("row", "method", "dataset", "number", "paper", "others", "ours", "difference", "verdict"),
    *("seconds", "hardware"),
)
_RIGHT = {"paper", "ours", "difference", "seconds"}
_STYLE = """
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: normal; }
.paper, .ours, .difference, .seconds { text-align: right; font-variant-numeric: tabular-nums; }
.others { white-space: nowrap; }
@media (max-width: 50rem) {
  .method, .dataset, .others, .difference, .hardware { display: none; }
  th, td { padding: .3rem; }
}
"""


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The entries of an earlier table by their rows; none where there is no table.

    Raises:
      ValueError: a damaged table.
    """
    path = out / _JSON
    if not path.exists():
        return {}
    remedy = "delete it and run again"
    entries = read_json(path, remedy).get("rows")
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), str) for key in ("row", "state", "reason")
        ):
            raise ValueError(f"{path} is damaged ({printable(repr(entry))[:80]}); {remedy}")
    return {entry["row"]: entry for entry in entries}


def write(out: Path, entries: Sequence[Entry]) -> None:
    """Writes the three files, each in one step."""
    write_json(out / _JSON, {"rule": RULE, "rows": [entry.as_json() for entry in entries]})
    write_atomic(out / _MD, lambda file: file.write(markdown(entries).encode()))
    write_atomic(out / _HTML, lambda file: file.write(as_html(entries, out).encode()))


def markdown(entries: Sequence[Entry]) -> str:
    """The table in Markdown."""
    places = _places(entries)
    lines = [f"# {_TITLE}", "", _row(_HEAD)]
    lines.append(_row(["---:" if name in _RIGHT else "---" for name in _HEAD]))
    for entry in entries:
        lines += [_row(map(_plain, cells.values())) for cells in _lines(entry, places)]
    for title, texts in _remarks(entries, places).items():
        lines += ["", f"## {title}", "", *(f"- {_plain(text)}" for text in texts)]
    return "\n".join(lines) + "\n"


def as_html(entries: Sequence[Entry], out: Path) -> str:
    """The table as a page; rows whose work directory has a report lead to it."""
    places = _places(entries)
    rows = ["".join(f'<th class="{name}">{name}</th>' for name in _HEAD)]
    for entry in entries:
        for cells in _lines(entry, places):
            shown = {name: escape(text).replace("_", "_<wbr>") for name, text in cells.items()}
            if cells["row"] and (out / entry.row / "report.html").exists():
                shown["row"] = f'<a href="{escape(entry.row)}/report.html">{shown["row"]}</a>'
            rows.append("".join(f'<td class="{k}">{text}</td>' for k, text in shown.items()))
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    body = f'<h1>{_TITLE}</h1>\n<div class="wide"><table>\n{lines}\n</table></div>\n'
    for title, texts in _remarks(entries, places).items():
        items = "".join(f"<li>{escape(text)}</li>\n" for text in texts)
        body += f"<h2>{title}</h2>\n<ul>\n{items}</ul>\n"
    return page(_TITLE, body, _STYLE)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """`text` in a cell or a line of Markdown, whatever it holds."""
    return re.sub(r"([\\`*|<>\[\]&])", r"\\\1", escaped(text))


def _lines(entry: Entry, places: Sequence[str]) -> list[dict[str, str]]:
    """The cells of each number of an entry; what is said once is in the first line alone."""
    once = {
        "row": entry.row,
        "method": entry.method,
        "dataset": entry.dataset,
        "seconds": "" if entry.seconds is None else f"{entry.seconds:.0f}",
        "hardware": str(places.index(_place(entry)) + 1) if _place(entry) else "",
    }
    lines: list[dict[str, str]] = []
    for number in entry.numbers:
        each = {
            "number": ", ".join(filter(None, (number.metric, number.what))),
            "paper": printed(number.paper),
            "others": _reported(number),
            "ours": "" if number.ours is None else f"{number.ours:.2f}",
            "difference": "" if number.difference is None else f"{number.difference:+.2f}",
            "verdict": number.verdict if entry.state == DONE else entry.state,
        }
        cells = each | ({} if lines else once)
        lines.append({name: cells.get(name, "") for name in _HEAD})
    return lines


def _places(entries: Sequence[Entry]) -> list[str]:
    """Where the entries were made and with what, each once."""
    return [*dict.fromkeys(filter(None, map(_place, entries)))]


def _place(entry: Entry) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in entry.versions.items())
    return "; ".join(filter(None, (entry.devices, entry.system, versions)))


def _reported(number: Number) -> str:
    if number.reported is None:
        return "not reported"
    low, high = printed(number.reported["low"]), printed(number.reported["high"])
    return low if low == high else f"{low} to {high}"


def _remarks(entries: Sequence[Entry], places: Sequence[str]) -> dict[str, list[str]]:
    """Title -> the lines that stand below the table."""
    sources: dict[str, list[str]] = {}
    for entry in entries:
        sources.setdefault(f"Published: {entry.source}", []).append(entry.row)
        for number in entry.numbers:
            if number.reported is not None:
                sources.setdefault(f"Others: {number.reported['source']}", []).append(entry.row)
    remarks = {
        "Not run": [
            ": ".join(filter(None, (e.row, e.state, e.reason))) for e in entries if e.state != DONE
        ],
        "Not comparable": [f"{e.row}: {'; '.join(e.notes)}" for e in entries if e.notes],
        "Verdicts": [RULE],
        "Hardware and versions": [f"{i}: {place}" for i, place in enumerate(places, 1)],
        "Sources": [f"{text}: {', '.join(dict.fromkeys(rows))}" for text, rows in sources.items()],
    }
    return {title: lines for title, lines in remarks.items() if lines}
