"""Tables, and parts of a page that fold."""

from __future__ import annotations

from collections.abc import Sequence

from clipseg_jax.core.html import escape

STYLE = """
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.soft { color: var(--soft); }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
details { border-top: 1px solid var(--line); padding: .25rem 0; margin-top: .75rem; }
summary { cursor: pointer; padding: .4rem 0; }
summary h2, summary h3 { display: inline; }
@media (max-width: 40rem) { table { font-size: .85rem; } th, td { padding-right: .5rem; } }
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
      head: names of the columns, plain text.
      rows: cells as HTML, in which all that comes from outside went through `escape`.
      numbers: how many of the last columns hold numbers.
    """
    first = len(head) - numbers
    kinds = ["" if i < first else ' class="number"' for i in range(len(head))]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def folded(summary: str, body: str, *, open_: bool = False) -> str:
    """`body` behind a `summary` that opens it; both are HTML."""
    state = " open" if open_ else ""
    return f"<details{state}><summary>{summary}</summary>\n{body}\n</details>"
