"""Seeded MaskCLIP+ models, batches and choices as the goldens describe them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import weights_convert
from clipseg_jax.core.modules import Keys, abstract
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus, Student, make_student
from clipseg_jax.methods.maskclip_plus.task import NEVER, MaskCLIPPlusConfig
from clipseg_jax.models.clip import ModifiedResNet
from clipseg_jax.models.resnet import DilatedResNetConfig
from tests import seeded
from tests.parity import cases
from weights_convert.clip.build import flat_arrays, install
from weights_convert.trained.maskclip_plus.published import TEXT_EMBEDDINGS, from_published, key_map

FOLDER = "maskclip"
# The choices in which MaskCLIP's ViTs differ from OpenAI's (spec maskclip, section 4).
VIT = {"activation": "gelu", "norm_eps": 1e-6, "position_keep_count": True}


def published(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by the published keys, in PyTorch's layout."""
    deep = any(path.startswith("student.image_pool.") for path in arrays)
    keys = key_map("deeplabv3plus" if deep else "deeplabv2", "v1c")
    return keys.to_left({path: np.asarray(value) for path, value in arrays.items()})


def published_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The published keys of all of a model but its teacher, in PyTorch's layout."""
    zeros = {
        path: np.broadcast_to(np.float32(0), leaf.shape)
        for path, leaf in flat_arrays(model).items()
        if not path.startswith("teacher.")
    }
    return {key: value.shape for key, value in published(zeros).items()}


def student_of(case: dict[str, Any], features: int) -> Student:
    """The student's shapes: its depth is told by the names of its parameters."""
    blocks = tuple(
        len({name.split(".")[2] for name in case["param_names"] if f".layer{n}." in name})
        for n in (1, 2, 3, 4)
    )
    decoder = "deeplabv3plus" if "deeplabv3plus" in case["config"] else "deeplabv2"
    cfg = DilatedResNetConfig(blocks)
    return abstract(lambda rngs: make_student(decoder, cfg, features, rngs=rngs))


def build(case: dict[str, Any], rows: np.ndarray, goldens: Path) -> MaskCLIPPlus:
    """The seeded model that a case describes."""
    told = case["weights"]
    name = cases.model_name(told["guide"])
    clip = weights_convert.clip_from_state_dict(
        cases.weights(told["guide"], cases.shapes(goldens, name, "clip"))
    )
    if not isinstance(clip.visual, ModifiedResNet):
        clip = weights_convert.with_config(clip, clip.cfg.replace(**VIT))
    background = case["classes_out"] > len(rows)
    student = student_of(case, rows.shape[1])
    model = MaskCLIPPlus(student, rows, clip.visual, background=background, rngs=Keys(0))
    seed = int(re.search(r"seeded\.tensor\(name, shape, (\d+)\)", told["student"]).group(1))
    pattern, factor = re.search(r"every ([\w.*]+)\s+times ([\d.]+)", told["student"]).groups()
    made = seeded.state_dict(published_shapes(model), seed)
    made[TEXT_EMBEDDINGS] = np.asarray(model.text_embeddings[...])
    for key in made:
        if re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key):
            made[key] = made[key] * np.float32(factor)
    install(model, from_published(made, "the case")[0], complete=("student.", "background"))
    return model


def choices(case: dict[str, Any]) -> MaskCLIPPlusConfig:
    """What the case's published config says; its name tells the setting and the variant."""
    name, told = Path(case["config"]).stem, case["config_overrides"]
    total = case["max_iters"]
    zero_shot = "zero_shot" in case["config"]
    switch = total // 10  # spec maskclip, section 12.4
    variant = re.search(r"maskclip_plus_(?:(ks|pd|kspd|distill)_)?", name).group(1) or ""
    unseen = case["unseen"]
    return MaskCLIPPlusConfig(
        guided_steps=(1, switch - 1) if zero_shot else (1, -1),
        self_training_steps=(switch, -1) if zero_shot else NEVER,
        unlabelled_classes=() if unseen == "all" else tuple(unseen),
        refine=MaskCLIPConfig(
            ks_threshold=told.get("ks_thresh", 1.0 if "ks" in variant else 0.0),
            pd_threshold=told.get("pd_thresh", 0.5 if "pd" in variant else 0.0),
        ),
        distill=variant == "distill",
    )


def optim(case: dict[str, Any]) -> OptimConfig:
    """The case's SGD and its schedule."""
    told = case["optimizer"]
    assert told["type"] == "SGD"
    power, least = re.search(r"poly power ([\d.]+) min_lr ([\d.e-]+)", case["lr_policy"]).groups()
    return OptimConfig(
        learning_rate=told["lr"],
        end_learning_rate=float(least),
        power=float(power),
        momentum=told["momentum"],
        weight_decay=told["weight_decay"],
    )


def batch(case: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    """The one batch of all steps; `labels` as the case stores them."""
    height, width = map(int, re.search(r"seeded\.image\((\d+),(\d+),s\)", case["input"]).groups())
    seeds = map(int, re.search(r"s in \[([\d, ]+)\]", case["input"]).group(1).split(","))
    images = [seeded.image(height, width, seed) for seed in seeds]
    assert "ImageNet" in case["input"]
    return {
        "image": jnp.asarray(np.stack(images)),
        "image_size": jnp.asarray([(height, width)] * len(images)),
        "label": jnp.asarray(labels, jnp.int32),
    }


def thinned(name: str, array: Any) -> np.ndarray:
    """The elements of a parameter, in PyTorch's layout, that the goldens keep."""
    array = np.asarray(array)
    if array.ndim == 4 and array.shape[2:] == (3, 3):
        array = array[:, :, 1, 1]
    array = array.ravel()
    return array[:: max(1, array.size // 64)][:64]
