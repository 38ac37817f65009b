"""Every recipe, killed at random moments of every stage, ends with the results of an unbroken run.

CLIPSEG_JAX_TEST_KILLS=30 for as many kills of each recipe; default: one in each stage.
"""

from __future__ import annotations

import os

import pytest

from tests import folders
from tests.kills import differences, run_killed, run_whole, start

KILLS = int(os.environ.get("CLIPSEG_JAX_TEST_KILLS", "0"))

# Every demo at its smallest: all stages, some checkpoints in each training, an evaluation between.
SHARED = {
    "dataset.name": "folder", "text.templates": "single",
    "run.batch_size": 2, "run.log_every_steps": 1, "run.checkpoint_every_steps": 3,
}  # fmt: skip
RECLIP = {
    "rectifier.scale_px": "(64,64)", "rectifier.crop_px": "(48,48)", "rectifier.batch_size": 2,
    "rectifier.total_epochs": 4, "rectifier.evaluate_every_epochs": 1,
    "inference.scale_px": "(64,64)",
    "student.scale_px": "(64,64)", "student.crop_px": "(48,48)",
    "student.init_weights": "random", "student.width": 8,
    "student.batch_size": 2, "student.total_epochs": 4, "student.evaluate_every_epochs": 1,
    "run.pictures": 2, "run.predictions": True,
}  # fmt: skip
WECLIP = {
    "head.width": 32, "head.layers": 1, "head.heads": 1, "par.iterations": 2,
    "head.crop_px": "(48,48)", "head.batch_size": 2, "head.total_steps": 12,
    "head.late_step": 6, "head.evaluate_every_steps": 6,
    "inference.scale_px": "(64,64)", "crf.iterations": 2,
}  # fmt: skip
RECIPES = {
    "demo_maskclip": {
        "inference.scale_px": "(64,64)", "run.pictures": 2, "run.predictions": True,
        "robustness.kinds": "('spatter',)", "robustness.levels": "(1,5)",
        "stages": "('data','text','evaluate','robustness')",
    },
    "demo_maskclip_plus": {
        "student.init_weights": "random", "student.width": 8,
        "student.scale_px": "(64,64)", "student.crop_px": "(48,48)",
        "student.batch_size": 4, "student.total_steps": 12, "student.evaluate_every_steps": 3,
        "student.guided_steps": "(1,5)", "student.self_training_steps": "(6,-1)",
        "inference.scale_px": "(64,64)", "run.pictures": 2, "run.checkpoint_every_steps": 2,
    },
    "demo_reclip": RECLIP,
    "demo_reclippp": RECLIP,
    "demo_clip_es": {
        "stages": "('data','tags','text','cams','evaluate_cams','masks','evaluate_masks','train',"
        "'evaluate_student','evaluate_student_crf')",
        "labels.source": "tags", "tags.affinity_blocks": "(2,3)", "tags.templates": "single",
        "crf.iterations": 2, "student.width": 8, "student.batch_size": 4,
        "student.crop_px": "(48,48)", "student.total_steps": 12,
    },
    "demo_weclip": WECLIP,
    "demo_wtclip": WECLIP,
    "demo_clip_rc:inductive": {
        "clip_rc.crop_px": 32, "clip_rc.region_side": 2, "clip_rc.decoder_blocks": 1,
        "clip_rc.heads": 2, "clip_rc.hidden": 16, "clip_rc.scale_px": "(96,48)",
        "clip_rc.batch_size": 2, "clip_rc.total_steps": 8, "clip_rc.evaluate_every_steps": 2,
        "clip_rc.optim.warmup_steps": 2, "inference.scale_px": "(1000,40)",
        "inference.crop_px": "(32,32)", "inference.stride_px": "(24,24)",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Four pictures to score and ten to train on."""
    return folders.write_painted(tmp_path_factory.mktemp("world"), 4, 10)


def check(config, root, folder, *, processes=1, kills=0):
    """Kills of the recipe `config` change nothing of its results; prints the kills."""
    settings = SHARED | {"dataset.root": root} | RECIPES[config]

    def make(workdir, stages=None):
        return start(config, workdir, settings, root / "cache", processes, stages)

    stages = run_whole(make, folder / "whole")
    done = run_killed(
        make, folder / "broken", stages, kills or KILLS or len(stages), processes=processes
    )
    print(f"\n{config}, {processes} processes:", *done, sep="\n  ")
    assert not all(line.endswith("code 0") for line in done)  # some have come in time
    assert not [*differences(folder / "whole", folder / "broken")]


@pytest.mark.slow
def test_a_few_kills(painted, tmp_path):
    check("demo_maskclip", painted, tmp_path, kills=3)


@pytest.mark.long
@pytest.mark.parametrize("config", RECIPES)
def test_killed_in_every_stage(config, painted, tmp_path):
    check(config, painted, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("config", ["demo_clip_es", "demo_reclippp", "demo_weclip"])
def test_two_processes_killed_in_every_stage(config, painted, tmp_path):
    check(config, painted, tmp_path, processes=2, kills=KILLS or 4)
