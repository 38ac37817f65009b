"""Estimates of the TPU's compiler for one chip of a v5e, within 10 %: they are deterministic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Recipe and values of it, program, images of a chip; milliseconds estimated, and the least share
# of the peak. Compiling one takes 1 to 15 minutes.
FIGURES = [
    ("voc_reclippp", [], "rectify", 8, 20.0, 0.40),
    ("voc_maskclip", [], "evaluate", 8, 24.8, 0.45),
    ("voc_reclippp", ["--config.student.aux=off"], "distill", 8, 142.0, 0.45),
    ("voc_clip_rc:inductive", [], "train", 8, 76.0, 0.31),
    ("voc_clip_es", [], "cams", 4, 9.3, 0.30),
    ("voc_weclip", [], "train", 4, 20.0, 0.18),
]


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "values", "program", "images", "ms", "share"), FIGURES)
def test_estimates(tmp_path, recipe, values, program, images, ms, share):
    pytest.importorskip("libtpu", reason="needs the extra aot-tpu")
    costs = tmp_path / "costs.json"
    path, colon, variant = recipe.partition(":")
    subprocess.run(
        [
            *(sys.executable, "-m", "clipseg_jax.compile"),
            f"--config=configs/{path}.py{colon}{variant}",
            *("--topology=v5e:1x1", "--dtype=bfloat16", f"--images-per-device={images}"),
            *(f"--programs={program}", f"--json={costs}", *values),
        ],
        cwd=ROOT, check=True,
    )  # fmt: skip
    (cost,) = json.loads(costs.read_text())["programs"]
    assert 1e3 * cost["seconds"] == pytest.approx(ms, rel=0.1)
    assert cost["share_of_peak"] >= share
