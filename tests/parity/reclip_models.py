"""Seeded ReCLIP models as the goldens describe them: what all ReCLIP cases share."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

import weights_convert
from clipseg_jax.methods.reclip import task as reclip
from clipseg_jax.methods.reclip.model import ReCLIP, ReCLIPConfig, reference_ids
from clipseg_jax.models.clip import CLIP, Tokenizer
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from tests import seeded
from tests.parity import cases
from weights_convert.trained.reclip.keys import RECTIFICATION

FOLDER = "reclip"
RECLIP = ReCLIPConfig(plus_plus=False, gumbel_scale=1000.0, filter_scale=100.0)
RECLIP_PP = ReCLIPConfig()
# Rounded as the published configs round CLIP's.
STATISTICS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323)),
}


def statistics(text: str) -> tuple[tuple, tuple]:
    """(mean, std) of the normalisation that a text names."""
    return STATISTICS[re.search(r"imagenet|clip", text.lower()).group()]


def golden_json(goldens: Path, name: str) -> dict[str, Any]:
    """A json without arrays, from the folder given or else from the repository's own."""
    path = goldens / FOLDER / name
    return json.loads((path if path.is_file() else cases.DEFAULT / FOLDER / name).read_text())


@functools.lru_cache(maxsize=1)
def clip_of(goldens: Path, seed: int) -> CLIP:
    """The seeded ViT-B/16 that all cases share: some seconds of random numbers."""
    path = goldens / FOLDER / "clip_shapes.json"
    shapes = json.loads(path.read_text()) if path.is_file() else cases.shapes(goldens, "ViT-B/16")
    return weights_convert.clip_from_state_dict(seeded.state_dict(shapes, seed))


def picture(text: str) -> np.ndarray:
    """The image of the first "seeded.image(224, 300, 11)" in a text."""
    numbers = re.search(r"seeded\.image\((\d+), (\d+), (\d+)\)", text).groups()
    return seeded.image(*map(int, numbers))


def tensor(text: str) -> np.ndarray:
    """The array of 'seeded.tensor("name", (1,1,768), 11)'."""
    pattern = r'seeded\.tensor\("([\w.]+)", \(([\d,]+)\), (\d+)\)'
    name, shape, seed = re.search(pattern, text).groups()
    return seeded.tensor(name, tuple(map(int, shape.split(","))), int(seed))


def text_rows(case: dict[str, Any]) -> np.ndarray:
    """The unit rows that stand for text embeddings."""
    pattern = r'seeded\.unit_rows\("(\w+)", (\d+), (\d+), (\d+)\)'
    name, *numbers = re.search(pattern, case["inputs"]["text_embeddings"]).groups()
    return seeded.unit_rows(name, *map(int, numbers))


def name_ids(goldens: Path, class_set: str) -> tuple[tuple[int, ...], ...]:
    """The published ids of a class set, which our tokenizer must give as well."""
    known = golden_json(goldens, "class_sets.json")[class_set]
    ids = reference_ids(Tokenizer.openai(), known["classes"])
    assert ids == tuple(map(tuple, known["cls_name_token"]))
    return ids


def flat(state: nnx.State) -> dict[str, Any]:
    """Arrays by dotted path."""
    tree = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): leaf for path, leaf in tree.items()}


def rectification_weights(case: dict[str, Any], goldens: Path) -> dict[str, np.ndarray]:
    """Everything that rectification trains, by the published keys."""
    loaded = golden_json(goldens, f"rect_shapes_{case['method']}.json")
    assert loaded["num_classes"] == case["num_classes"]
    weights = case["weights"]
    made = {
        key: seeded.tensor(key, shape, case["seed"]) * np.float32(weights["scale"].get(key, 1))
        + np.float32(weights.get("offset", {}).get(key, 0))
        for key, shape in loaded["shapes"].items()
        if not key.endswith("num_batches_tracked")
    }
    if "running_mean 0" in weights["trained"]:
        for key in made:
            if key.endswith(("running_mean", "running_var")):
                made[key] = np.full_like(made[key], key.endswith("var"))
    return made


def build(case: dict[str, Any], goldens: Path) -> ReCLIP:
    """The rectified CLIP that a case describes."""
    activation = "gelu" if case["visual_activation"].startswith("gelu") else "quick_gelu"
    class_set = re.search(r"class_sets\.(\w+)\.", case["inputs"]["cls_name_token"]).group(1)
    model = reclip.init_reclip(
        clip_of(goldens, case["seed"]),
        text_rows(case),
        name_ids(goldens, class_set),
        RECLIP if case["method"] == "ReCLIP" else RECLIP_PP,
        activation=activation,
        class_token=tensor(case["weights"]["vit.cls_token"]),
        rngs=nnx.Rngs(0),
    )
    np.testing.assert_allclose(model.cfg.temperature, 100, rtol=1e-6)
    return with_weights(model, rectification_weights(case, goldens))


def with_weights(model: ReCLIP, weights: dict[str, np.ndarray]) -> ReCLIP:
    """`model` with what rectification trains replaced by arrays of the published keys."""
    state = nnx.state(model)
    leaves = flat(state)
    wanted = {k: v.shape for k, v in leaves.items() if k.startswith(("head.", "reference.prompt"))}
    leaves |= {
        path: jnp.asarray(array, jnp.float32)
        for path, array in RECTIFICATION.to_right(weights, wanted, "the case").items()
    }
    paths = {".".join(map(str, p)): p for p in traverse_util.flatten_dict(nnx.to_pure_dict(state))}
    tree = traverse_util.unflatten_dict({paths[name]: leaf for name, leaf in leaves.items()})
    nnx.replace_by_pure_dict(state, tree)
    nnx.update(model, state)
    return model
