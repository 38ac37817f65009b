"""The launch script: two processes of two devices rectify as one process of four does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipseg_jax.core.json_lines import read_lines
from clipseg_jax.demo import world
from weights_convert import RECLIP, load_trained

ROOT = Path(__file__).resolve().parent.parent


def launch(processes, devices, root, workdir):
    settings = {
        "dataset.name": "folder", "dataset.root": root, "text.templates": "single",
        "rectifier.scale_px": "(64,64)", "rectifier.crop_px": "(48,48)",
        "rectifier.batch_size": 4, "rectifier.total_epochs": 1,
        "rectifier.evaluate_every_epochs": 1,
        "inference.scale_px": "(64,64)",
        "run.batch_size": 4, "run.pictures": 2,
        "stages": "('data','text','tags','rectify','evaluate')",
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    # Process 0 alone writes a compile cache, and has been seen to stop for good while doing so.
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = {
        **inherited,
        "DEVICES": str(devices), "LOGS": str(workdir.parent), "PYTHON": sys.executable,
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }  # fmt: skip
    done = subprocess.run(
        [
            "bash", ROOT / "launch/local.sh", str(processes),
            "--config=configs/demo_reclippp.py", f"--workdir={workdir}", *arguments,
        ],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_do_the_recipe(tmp_path):
    root = tmp_path / "world"
    world.write_dataset(root, 6, 64)
    world.write_dataset(root / "train", 8, 64, "train")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    launch(1, 4, root, tmp_path / "one" / "work")
    text = launch(2, 2, root, tmp_path / "two" / "work")
    assert text.count("stage rectify") == 1  # one process speaks
    one, two = tmp_path / "one" / "work", tmp_path / "two" / "work"
    tags = [next((folder / "tags").glob("*.json")).read_text() for folder in (one, two)]
    assert tags[0] == tags[1]
    losses = [[line["loss"] for line in read_lines(f / "rectify.jsonl")] for f in (one, two)]
    assert losses[0]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    a, b = (load_trained(f / "rectified_last.safetensors", RECLIP).arrays for f in (one, two))
    for key, value in a.items():
        np.testing.assert_allclose(value, b[key], rtol=1e-5, atol=1e-6, err_msg=key)
    metrics = [json.loads((f / "metrics_rectified.json").read_text()) for f in (one, two)]
    assert metrics[0]["images"] == metrics[1]["images"] == 6
    assert metrics[0]["mIoU"] == pytest.approx(metrics[1]["mIoU"], abs=0.5)
