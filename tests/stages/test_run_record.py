"""What each start of a recipe leaves for its report."""

from __future__ import annotations

import json

import jax
import numpy as np

from clipseg_jax import main
from clipseg_jax.demo import world
from clipseg_jax.stages.run_record import append_run
from configs import demo_maskclip


def lines(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_every_start_is_a_line(tmp_path):
    for recipe in ("voc_reclippp:2025", ""):
        append_run(tmp_path, recipe)
    first, second = lines(tmp_path)
    assert (first["recipe"], second["recipe"]) == ("voc_reclippp:2025", "")
    assert first["packages"]["numpy"] == np.__version__
    assert first["packages"]["jax"] == jax.__version__
    assert "8 devices" in first["devices"]
    assert first["started"].endswith("+00:00")


def test_the_newest_are_kept_and_damage_is_no_error(tmp_path):
    line = json.dumps({"started": "then", "recipe": "old"}) + "\n"
    (tmp_path / "runs.jsonl").write_text("{half\n" + line * 300)
    append_run(tmp_path, "new")
    kept = lines(tmp_path)
    assert len(kept) == 100
    assert [each["recipe"] for each in kept[-2:]] == ["old", "new"]


def test_a_failed_start_locks_nothing(tmp_path):
    """After the stage `data` other values may be corrected, with a report and a record there."""
    config = demo_maskclip.get_config()
    world.write_dataset(tmp_path / "world", 2, 64)
    config.dataset.name, config.dataset.root = "folder", str(tmp_path / "world")
    config.stages = ("data",)
    main.run(config, tmp_path / "work", recipe="demo_maskclip")
    assert (tmp_path / "work" / "report.html").exists()
    config.maskclip.ks_threshold = 0.5
    main.run(config, tmp_path / "work", recipe="demo_maskclip")
    assert len(lines(tmp_path / "work")) == 2
