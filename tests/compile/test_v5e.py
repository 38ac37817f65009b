"""Estimates of the TPU's compiler for one chip of a v5e, within 10 %: they are deterministic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Recipe, program, images of a chip; milliseconds estimated, and the least share of the peak.
FIGURES = [
    ("voc_reclippp", "rectify", 8, 20.0, 0.40),
    ("voc_maskclip", "evaluate", 8, 24.8, 0.45),
]


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "program", "images", "ms", "share"), FIGURES)
def test_estimates(tmp_path, recipe, program, images, ms, share):
    pytest.importorskip("libtpu", reason="needs the extra aot-tpu")
    path = tmp_path / "costs.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "clipseg_jax.compile", f"--config=configs/{recipe}.py"),
            *("--topology=v5e:1x1", "--dtype=bfloat16", f"--images-per-device={images}"),
            *(f"--programs={program}", f"--json={path}"),
        ],
        cwd=ROOT, check=True,
    )  # fmt: skip
    (cost,) = json.loads(path.read_text())["programs"]
    assert 1e3 * cost["seconds"] == pytest.approx(ms, rel=0.1)
    assert cost["share_of_peak"] >= share
