"""Options that mean nothing are refused in one line; those of every recipe pass."""

from __future__ import annotations

import math

import pytest

from clipseg_jax.core.optim import Group, OptimConfig
from clipseg_jax.methods.clip_es.model import CLIPESConfig
from clipseg_jax.methods.clip_rc.model import CLIPRCConfig
from clipseg_jax.methods.clip_rc.task import CLIPRCTaskConfig
from clipseg_jax.methods.maskclip_plus.task import MaskCLIPPlusConfig
from clipseg_jax.methods.reclip.distill_task import DistillConfig
from clipseg_jax.methods.reclip.model import ReCLIPConfig
from clipseg_jax.methods.reclip.tags import TagsConfig
from clipseg_jax.methods.tagclip.model import TagCLIPConfig
from clipseg_jax.methods.weclip.head import HeadConfig
from clipseg_jax.methods.weclip.model import WeCLIPConfig
from clipseg_jax.methods.weclip.task import TaskConfig
from clipseg_jax.ops.pamr import PAMRConfig
from clipseg_jax.ops.par import PARConfig
from clipseg_jax.stages.completion import completed
from clipseg_jax.stages.sections import options
from clipseg_jax.stages.training import in_steps
from clipseg_jax.train import TrainConfig
from tests.test_configs import RECIPES, load, strings

# Method -> the section of the config that each dataclass is made of.
SECTIONS = {
    "reclip": {TagsConfig: "tags", DistillConfig: "student"},
    "clip_es": {CLIPESConfig: "cams", TagCLIPConfig: "tags"},
    "weclip": {WeCLIPConfig: "cams", PARConfig: "par", HeadConfig: "head", TaskConfig: "head"},
    "clip_rc": {CLIPRCConfig: "clip_rc", CLIPRCTaskConfig: "clip_rc"},
    "maskclip_plus": {MaskCLIPPlusConfig: "student"},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes(path, tmp_path):
    for string in strings(path):
        config = load(path).get_config(*([] if string is None else [string]))
        if config.dataset.name == "folder":  # of a user, who names classes and a CLIP
            config.dataset.class_names, config.clip.weights = ("background", "cat"), "demo"
            config = completed(config, tmp_path)
        for kind, name in SECTIONS.get(config.method, {}).items():
            if name in config:
                options(kind, config[name])
        for section in config.values():
            if "optim" in getattr(section, "keys", list)():
                options(OptimConfig, section.optim)


TRAIN = {"total_steps": 4}
WRONG = [
    (TrainConfig, {"total_steps": 0}),
    (TrainConfig, {"total_steps": 2.5}),
    (TrainConfig, {"total_steps": "12"}),
    (TrainConfig, TRAIN | {"accumulate_steps": 0}),
    (TrainConfig, TRAIN | {"log_every_steps": 0}),
    (TrainConfig, TRAIN | {"checkpoint_every_steps": -5}),
    (TrainConfig, TRAIN | {"keep_checkpoints": 0}),
    (TrainConfig, TRAIN | {"evaluate_every_steps": -1}),
    (TrainConfig, TRAIN | {"seed": -1}),
    (OptimConfig, {"learning_rate": math.nan}),
    (OptimConfig, {"learning_rate": -0.1}),
    (OptimConfig, {"learning_rate": "0.1"}),
    (OptimConfig, {"weight_decay": math.inf}),
    (OptimConfig, {"momentum": 1.5}),
    (OptimConfig, {"betas": (0.9, -1)}),
    (OptimConfig, {"hold_steps": 0}),
    (OptimConfig, {"clip_norm": True}),
    (Group, {"pattern": "", "rate": -1}),
    (TagsConfig, {"method": "tiles"}),
    (TagsConfig, {"min_votes": 0}),
    (TagsConfig, {"crop_px": 6}),
    (DistillConfig, {"teacher_threshold": 1.5}),
    (DistillConfig, {"test_threshold": None}),
    (DistillConfig, {"teacher_scale": 0}),
    (ReCLIPConfig, {"temperature": math.nan}),
    (CLIPESConfig, {"box_threshold": -0.4}),
    (CLIPESConfig, {"affinity_blocks": ()}),
    (CLIPESConfig, {"affinity_blocks": (4, 4)}),
    (CLIPESConfig, {"sinkhorn_iterations": 1.5}),
    (TagCLIPConfig, {"votes": -1}),
    (TagCLIPConfig, {"relative_threshold": 2}),
    (TagCLIPConfig, {"affinity_blocks": 8}),
    (WeCLIPConfig, {"late_blocks": 0}),
    (PARConfig, {"dilations": ()}),
    (PAMRConfig, {"dilations": ()}),
    (PAMRConfig, {"dilations": (8, 0)}),
    (PAMRConfig, {"steps": -1}),
    (HeadConfig, {"dropout": 1.5}),
    (TaskConfig, {"affinity_weight": math.nan}),
    (CLIPRCConfig, {"region_side": 0}),
    (CLIPRCConfig, {"head_init": "random"}),
    (CLIPRCTaskConfig, {"dice_weight": -1}),
    (MaskCLIPPlusConfig, {"distill_weight": math.inf}),
]


@pytest.mark.parametrize(("kind", "values"), WRONG, ids=lambda value: str(value)[:40])
def test_what_means_nothing_is_refused(kind, values):
    name, value = list(values.items())[-1]
    with pytest.raises(ValueError, match=rf"^{name} is .*; give ") as error:
        kind(**values)
    said = str(error.value)
    assert "\n" not in said
    assert repr(value)[:5] in said or name in ("betas", "dilations")


def test_lengths_of_training():
    assert in_steps({"total_steps": None, "total_epochs": 3}, "total", 10) == 30
    assert in_steps({"total_steps": 7, "total_epochs": None}, "total", 10) == 7
    with pytest.raises(ValueError, match="total_epochs is -1; give"):
        in_steps({"total_steps": None, "total_epochs": -1}, "total", 10)
