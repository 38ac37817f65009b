"""The rules for larger batches, and the table of docs/training.md that states them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipseg_jax.core.optim import OptimConfig, scaled_learning_rate
from configs import (
    cityscapes_reclippp,
    own_deeplab,
    voc_clip_es,
    voc_clip_rc,
    voc_maskclip_plus,
    voc_reclip,
    voc_reclippp,
    voc_weclip,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "ReCLIP, `rectifier`": voc_reclippp.get_config("2025").rectifier,
    "ReCLIP, `student`": voc_reclip.get_config("2024").student,
    "MaskCLIP+, `student`": voc_maskclip_plus.get_config("").student,
    "CLIP-ES, `student`": voc_clip_es.get_config("coco").student,
    "WeCLIP, WTCLIP, `head`": voc_weclip.get_config().head,
    "CLIP-RC, `clip_rc`": voc_clip_rc.get_config("inductive").clip_rc,
    "own images, DeepLab, `student`": own_deeplab.get_config().student,
}


def rows():
    text = (ROOT / "docs/training.md").read_text()
    table = text[text.index("| trained |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_rules():
    assert scaled_learning_rate(0.01, 1, 32, "sgd") == pytest.approx(0.32)
    assert scaled_learning_rate(2e-4, 4, 64, "adamw") == pytest.approx(8e-4)
    released = cityscapes_reclippp.get_config("2025").rectifier
    ours = scaled_learning_rate(0.01, 1, released.batch_size, released.optim.name)
    assert released.optim.learning_rate == pytest.approx(ours)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_table_is_what_recipes_have(row):
    trained, optimiser, batch, rate, rule, warm_up = row
    section = CONFIGS[trained]
    assert section.optim.name == optimiser.lower()
    assert section.batch_size == int(batch)
    assert section.optim.learning_rate == float(rate)
    assert rule.startswith("linear" if optimiser == "SGD" else "square root")
    steps = re.match(r"\d+", warm_up)
    assert section.optim.warmup_steps == (int(steps[0]) if steps else 0)
    OptimConfig(**section.optim.to_dict())


def test_every_training_has_a_row():
    assert {row[0] for row in rows()} == {*CONFIGS}


def test_the_scripts_of_launch_follow_the_rule():
    for name in ("slurm.sh", "jobset.yaml"):
        text = (ROOT / "launch" / name).read_text()
        for section, published in (("rectifier", 1), ("student", 16)):
            batch = int(re.search(rf"{section}\.batch_size=(\d+)", text)[1])
            rate = float(re.search(rf"{section}\.optim\.learning_rate=([\d.]+)", text)[1])
            assert rate == pytest.approx(scaled_learning_rate(0.01, published, batch, "sgd"))
