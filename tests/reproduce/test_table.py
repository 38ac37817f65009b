"""The three files of the table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from clipseg_jax.reproduce import table
from clipseg_jax.reproduce.results import DONE, FAILED, Number, not_run
from clipseg_jax.stages.published_rows import rows

ROWS = {row.row: row for row in rows()}
EVIL = '<script>alert("1")</script> | `x` \x1b[2J & *b*'


def entry(name, *ours, verdict="equal within 0.5", **values):
    """A row that is done, with these numbers."""
    plain = not_run(ROWS[name], DONE)
    numbers = tuple(
        replace(number, ours=each, difference=round(each - number.paper, 2), verdict=verdict)
        for number, each in zip(plain.numbers, ours, strict=True)
    )
    where = {"devices": "1 process, 1 device: cpu", "system": "AMD, 2 cores"}
    return replace(plain, numbers=numbers, **{"seconds": 12.4, **where, **values})


def lines(out):
    """The cells of the Markdown table."""
    rows = (out / "table.md").read_text().split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_each_number_has_a_line(tmp_path):
    other = {"system": "Intel, 8 cores", "versions": {"jax": "0.10.2"}}
    made = [entry("voc_weclip", 73.41, 75.7), entry("voc21_sclip", 59.0, **other)]
    table.write(tmp_path, made)
    head, _, *cells = lines(tmp_path)
    got = [dict(zip(head, row, strict=True)) for row in cells]
    assert [row["row"] for row in got] == ["voc_weclip", "", "voc21_sclip"]
    assert got[0] == {
        "row": "voc_weclip", "method": "WeCLIP", "dataset": "VOC 2012, 21 classes",
        "number": "mIoU_of_labelled, without CRF", "paper": "74.9", "others": "73.3 to 73.9",
        "ours": "73.41", "difference": "-1.49", "verdict": "equal within 0.5", "seconds": "12",
        "hardware": "1",
    }  # fmt: skip
    assert (got[1]["seconds"], got[1]["hardware"], got[1]["ours"]) == ("", "", "75.70")
    assert (got[2]["others"], got[2]["hardware"]) == ("59.63", "2")
    text = (tmp_path / "table.md").read_text()
    assert "- 1: 1 process, 1 device: cpu; AMD, 2 cores\n" in text
    assert "- 2: 1 process, 1 device: cpu; Intel, 8 cores; jax 0.10.2\n" in text
    assert "- Others: its README 59.63 (spec readouts, section 10): voc21_sclip\n" in text
    stored = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["numbers"][0]["ours"] for row in stored] == [73.41, 59.0]
    assert stored[0]["numbers"][0]["reported"]["low"] == 73.3


def test_rows_without_numbers(tmp_path):
    table.write(tmp_path, [not_run(ROWS["voc21_clip"], FAILED, "out of memory")])
    head, _, cells = lines(tmp_path)
    got = dict(zip(head, cells, strict=True))
    assert (got["ours"], got["difference"], got["verdict"], got["hardware"]) == (
        "",
        "",
        "failed",
        "",
    )
    assert "- voc21_clip: failed: out of memory\n" in (tmp_path / "table.md").read_text()
    text = (tmp_path / "table.md").read_text()
    assert "Not comparable" not in text
    assert "Hardware" not in text


class Tags(HTMLParser):
    """The tags of a page and the texts of its cells."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name == "href"]

    def handle_data(self, data):
        self.texts.append(data)


def test_html_escapes_what_comes_from_outside(tmp_path):
    bad = replace(
        entry("voc21_clip", 18.8, notes=(EVIL,), system=EVIL, versions={EVIL: EVIL}),
        method=EVIL, source=EVIL,
    )  # fmt: skip
    table.write(tmp_path, [bad, not_run(ROWS["voc20_clip"], FAILED, EVIL)])
    page = (tmp_path / "table.html").read_text()
    assert "script" not in Tags(page).tags
    assert "\x1b" not in page
    assert "Content-Security-Policy" in page
    text = (tmp_path / "table.md").read_text()
    assert "\x1b" not in text
    assert "\\<script\\>" in text
    assert len({len(row) for row in lines(tmp_path)}) == 1  # no bar makes another cell


def test_html_leads_to_reports(tmp_path):
    (tmp_path / "voc21_clip").mkdir()
    (tmp_path / "voc21_clip/report.html").write_text("")
    table.write(tmp_path, [entry("voc21_clip", 18.8), entry("voc20_clip", 49.4)])
    page = Tags((tmp_path / "table.html").read_text())
    assert page.links == ["voc21_clip/report.html"]
    assert page.tags.count("tr") == 3
    assert "http" not in "".join(page.links)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"rows": 3}', '{"rows": [3]}', '{"rows": [{"row": "x"}]}'],
)
def test_a_damaged_table_is_told(content, tmp_path):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(ValueError, match=r"table\.json is damaged .*; delete it and run again"):
        table.read(tmp_path)


def test_reads_what_it_writes(tmp_path):
    assert table.read(tmp_path) == {}
    made = entry("voc21_clip", 18.8)
    table.write(tmp_path, [made])
    read = table.read(tmp_path)["voc21_clip"]
    assert read == json.loads(json.dumps(made.as_json()))
    assert Number(**read["numbers"][0]) == made.numbers[0]
