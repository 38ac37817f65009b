"""One training step of each published family at full size, on small crops."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from clipseg_jax.core.mesh import make_mesh, shard_batch
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import OptimConfig, optimizer
from clipseg_jax.methods.maskclip_plus import task as maskclip_plus
from clipseg_jax.methods.maskclip_plus.build import student_of, task_config, tower_name, unseen
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus
from clipseg_jax.models.clip import CLIP, CLIPConfig
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.train_step import init_state, make_update, split_model
from configs import coco_stuff_maskclip_plus, context_maskclip_plus, voc_maskclip_plus
from tests import seeded

SHAPES = json.loads((Path(__file__).parents[2] / "golden/clip/shapes.json").read_text())
RELEASED = {"rn50": "RN50", "rn50x16": "RN50x16", "vit_b16": "ViT-B/16"}
FAMILIES = [
    (voc_maskclip_plus, "student=deeplabv2_r101,teacher=rn50,setting=zero_shot,classes=21"),
    (voc_maskclip_plus, "student=deeplabv2_r101,teacher=rn50x16,setting=annotation_free"),
    (context_maskclip_plus, "student=deeplabv3plus_r101,teacher=rn50,setting=zero_shot"),
    (context_maskclip_plus, "student=deeplabv2_r50,teacher=vit_b16,setting=annotation_free"),
    (coco_stuff_maskclip_plus, "student=deeplabv2_r101,teacher=rn50,setting=zero_shot"),
]


def model_of(config):
    """Student and teacher of full size with random weights."""
    shapes = {k: tuple(v) for k, v in SHAPES[RELEASED[config.clip.tower]].items()}
    vision = CLIPConfig.from_shapes({k: v for k, v in shapes.items() if "visual" in k}).vision
    assert tower_name(vision) == config.clip.tower
    dataset = find_dataset(config.dataset)
    rows = seeded.unit_rows("rows", len(dataset.prompts), vision.embed_dim, 0)

    def make(rngs):
        visual = CLIP(CLIPConfig(vision, None), rngs=rngs).visual
        student = student_of(config, vision.embed_dim, rngs)
        return MaskCLIPPlus(student, rows, visual, background=dataset.background, rngs=rngs)

    return initialised(make)


def batch_of(config, size=64):
    classes = find_dataset(config.dataset).num_classes
    labels = np.stack([seeded.label_map(size, size, classes, i) for i in (0, 1)]).astype(np.int32)
    hidden = unseen(config) or range(classes)
    return {
        "image": np.stack([seeded.image(size, size, i) for i in (0, 1)]),
        "image_size": np.full((2, 2), size, np.int32),
        "label": np.where(np.isin(labels, hidden), -1, labels),
        "index": np.arange(2, dtype=np.int32),
    }


@pytest.mark.long
@pytest.mark.parametrize(("module", "variant"), FAMILIES, ids=lambda x: getattr(x, "__name__", x))
def test_a_step_of_each_family(module, variant):
    config = module.get_config(variant)
    task = maskclip_plus.build(model_of(config), task_config(config))
    parts = split_model(task)
    tx = optimizer(OptimConfig(**config.student.optim.to_dict()), config.student.total_steps)
    mesh = make_mesh(1)
    state, frozen = init_state(parts, tx, mesh)
    before = jax.device_get(state.params)
    assert not any("teacher" in str(path) for path, _ in jax.tree.leaves_with_path(before))
    update = jax.jit(make_update(task, parts, tx, seed=0), donate_argnums=0)
    state, metrics = update(state, frozen, shard_batch(mesh, batch_of(config)))
    assert not metrics["bad"]
    assert metrics["loss"] > 0
    assert 0 <= metrics["acc_seg"] <= 100
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved))  # weight decay alone would move all but zeros
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))
