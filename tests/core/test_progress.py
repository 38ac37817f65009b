"""Progress where nobody watches: lines, not bars."""

from __future__ import annotations

import math

import jax
import pytest

from clipseg_jax.core.progress import progress_bar


def test_lines_in_a_log(capsys):
    with progress_bar(total=4, initial=1, unit="image", desc="tags", every_s=0) as bar:
        for _ in range(3):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("tags: 1/4 images, ")
    assert lines[-1].startswith("tags: 4/4 images, ")
    assert len(lines) >= 4
    assert not any("\r" in line or "|" in line for line in lines)


def test_a_line_where_it_is_asked_for(capsys):
    """As training does, with each of its logged steps."""
    bar = progress_bar(total=100, unit="step", desc="train", every_s=math.inf)
    capsys.readouterr()
    for _ in range(10):
        bar.update()
    assert capsys.readouterr().err == ""
    bar.set_postfix_str("loss 0.5, 8.0 images/s")
    line = capsys.readouterr().err
    assert line.startswith("train: 10/100 steps, ")
    assert line.endswith(" left, loss 0.5, 8.0 images/s\n")
    bar.close()


@pytest.mark.parametrize(("index", "lines"), [(0, True), (1, False)])
def test_one_process_speaks(index, lines, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    assert [*progress_bar(range(3), unit="image", desc="tags")] == [0, 1, 2]
    assert bool(capsys.readouterr().err) == lines
