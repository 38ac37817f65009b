"""A report as a reader sees it: its text, tables, pictures and addresses."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """Attributes: `text`, `rows` of tables as lists of cells, `tags` with their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.rows, self.tags, self.open = "", [], [], []
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.rows and {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        """The cells of the first row that begins so."""
        return next(row for row in self.rows if row and row[0] == first)

    def addresses(self) -> list[str]:
        """Everything that a browser would load or follow."""
        named = ("src", "href", "srcset", "action", "xlink:href")
        return [value for _, attrs in self.tags for name in named if (value := attrs.get(name))]
