"""CLIP-RC's parameters and multiply-adds, and the stage that tells them."""

from __future__ import annotations

import json

import pytest

from clipseg_jax import main
from clipseg_jax.methods.clip_rc.counts import counts
from clipseg_jax.methods.clip_rc.model import CLIPRCConfig
from clipseg_jax.models.clip import TextConfig, ViTConfig
from configs import demo_clip_rc
from tests.weights_convert import toys


def test_counts_as_published():
    told = json.loads((toys.GOLDEN / "clip_rc" / "flops.json").read_text())["configs"]["voc_zero"]
    vision, text = ViTConfig(224, 16, 768, 12, 12, 512), TextConfig(77, 49408, 512, 12, 8, 512)
    made = counts(vision, text, CLIPRCConfig(), 20)
    names = (
        *("trainable_params", "total_params", "backbone_params"),
        *("text_encoder_params", "head_params_never_used"),
    )
    assert [made[name] for name in names] == [told[name] for name in names]
    assert made["head_params"] == told["trainable_head"]
    for part in ("backbone", "decode_head", "total"):
        assert made["gmac"][part] == pytest.approx(told["gmac"][part], rel=0.02), part


def test_count_stage(tmp_path, capsys):
    config = demo_clip_rc.get_config()
    config.stages = ("count",)
    record = main.run(config, tmp_path)["count"]
    assert json.loads((tmp_path / "counts.json").read_text())["gmac"] == record["gmac"]
    assert record["trainable_params"] < record["total_params"]
    assert "trained" in capsys.readouterr().out
