"""Three rows of the paper's tables by the real command: one lacks a file, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipseg_jax.demo import TINY_CLIP
from tests import folders

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("voc_maskclip_vit_b16", "voc21_value", "voc20_value")
# Short: one prompt a name, small images.
SHORT = ("run.devices=1", "run.batch_size=2", "text.templates=single", "inference.scale_px=96,64")


def begin(tmp_path):
    """The command for four rows, of which one has no weights."""
    options = [f"--rows={name}" for name in (*ROWS, "voc_maskclip_rn50")]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "clipseg_jax.reproduce", "--datasets", tmp_path / "data"),
            *("--weights", tmp_path / "weights", "--out", tmp_path / "out", *options, "--"),
            *(f"--config.{each}" for each in SHORT),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "CLIPSEG_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def starts(tmp_path, row):
    """How many times a row was begun."""
    return (tmp_path / "out" / row / "log.txt").read_text().count(" -m clipseg_jax.main --config=")


@pytest.mark.slow
def test_three_rows_killed_and_resumed(tmp_path):
    folders.write_voc(tmp_path / "data/VOCdevkit/VOC2012")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/ViT-B-16.pt").symlink_to(TINY_CLIP)
    out = tmp_path / "out"
    log = out / ROWS[1] / "log.txt"

    # The command alone is killed in its second row, whose process goes on.
    process = begin(tmp_path)
    wait_for(lambda: log.exists() and "\nstage evaluate\n" in log.read_text(), process)
    child = json.loads((out / ROWS[1] / ".run.lock").read_text())["pid"]
    os.kill(child, signal.SIGSTOP)  # for as long as the next start takes to find it
    process.kill()
    process.communicate(timeout=60)
    made = json.loads((out / "table.json").read_text())["rows"]
    assert {entry["row"]: entry["state"] for entry in made} == {
        "voc_maskclip_rn50": "missing", ROWS[0]: "done", ROWS[1]: "ready", ROWS[2]: "ready",
    }  # fmt: skip

    # The next start waits for that process, which is killed as well.
    process = begin(tmp_path)
    before = ""
    while "waiting for its end" not in before:
        line = process.stdout.readline()
        assert line, before
        before += line
    assert f"process {child}; waiting" in before
    os.kill(child, signal.SIGKILL)
    text = before + process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    assert "2 to run, 1 done before, 1 lack something" in text
    assert [starts(tmp_path, row) for row in ROWS] == [1, 2, 1]
    assert "stage text: done before" in log.read_text()

    made = {entry["row"]: entry for entry in json.loads((out / "table.json").read_text())["rows"]}
    assert made["voc_maskclip_rn50"]["reason"] == "RN50.pt"
    table = (out / "table.md").read_text()
    for row in ROWS:
        entry = made[row]
        assert entry["state"] == "done"
        metrics = json.loads((out / row / "metrics.json").read_text())
        (number,) = entry["numbers"]
        assert number["ours"] == metrics["mIoU"]
        assert number["verdict"] == "not comparable"
        assert f"{number['paper']} | not reported | {metrics['mIoU']:.2f} |" in table
        assert re.fullmatch(r"1 process, \d+ devices?: cpu", entry["devices"])
        assert entry["system"].endswith(" cores")
        assert entry["versions"].keys() > {"python", "clipseg_jax", "jax", "jaxlib"}
        assert "inference.scale_px=[96, 64]" in entry["notes"][0]
        assert "val has 2 images (published: 1449)" in entry["notes"]
    assert re.search(r"- voc_maskclip_rn50: missing: RN50\.pt\n", table)
    assert f'href="{ROWS[0]}/report.html"' in (out / "table.html").read_text()
    assert "<table>" in (out / "table.html").read_text()
    hidden = [path for path in out.rglob(".*") if path.is_file()]
    assert not hidden  # no lock, nothing half written
