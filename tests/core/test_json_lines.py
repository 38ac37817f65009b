"""Lines of interrupted runs: none is lost, torn ones are made again."""

from __future__ import annotations

import json
import logging

import pytest

from clipseg_jax.core.json_lines import append_partial, json_line, read_lines, read_partial

GOOD = [{"index": 0, "tags": [1]}, {"index": 1, "tags": []}]
DAMAGED = {
    "torn": b'{"index": 2, "ta',
    "a list": b"[1, 2]",
    "another type": b'{"index": "2", "tags": []}',
    "a missing value": b'{"index": 2}',
    "not UTF-8": b"\xff\xfe",
    "NUL bytes": bytes(100),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("harm", DAMAGED)
@pytest.mark.parametrize("last", [True, False])
def test_damaged_lines_are_left_out(tmp_path, harm, last, caplog):
    path = tmp_path / "0.partial.jsonl"
    lines = [json_line(line).encode() for line in GOOD]
    lines.insert(2 if last else 1, DAMAGED[harm] + (b"" if last else b"\n"))
    path.write_bytes(b"".join(lines))
    with caplog.at_level(logging.WARNING, "absl"):
        assert read_partial(tmp_path, index=int, tags=list) == GOOD
    assert "0.partial.jsonl: 1 damaged lines" in caplog.text


def test_what_is_appended_after_a_torn_line_is_whole(tmp_path):
    path = tmp_path / "0.partial.jsonl"
    path.write_bytes(json_line(GOOD[0]).encode() + DAMAGED["torn"])
    with append_partial(tmp_path) as file:
        file.write(json_line(GOOD[1]))
        assert read_lines(path) == GOOD  # before the file is closed: a kill would not lose it
    assert [json.loads(line) for line in path.read_text().splitlines()] == GOOD
