"""DINO towers and ProxyCLIP against the published code: the checks of `test_readouts`."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

import weights_convert
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from tests import seeded
from tests.parity import cases

FOLDER = "readouts"


def tower(case, about, key, goldens):
    """The seeded DINO that a case describes: `about` its sizes, `key` its name in shapes.json."""
    text = case["proxy_weights"] if "proxy_weights" in case else case["weights"]
    pattern, factor = re.search(r"every ([\w.*]+) times ([\d.]+)", text).groups()
    pattern = re.escape(pattern).replace(r"\*", r"\d+")
    weights = {}
    for name, shape in cases.shapes(goldens, key, FOLDER).items():
        weights[name] = seeded.tensor(name, shape, case["proxy_seed"])
        if re.fullmatch(pattern, name):
            weights[name] = weights[name] * np.float32(factor)
    dino = weights_convert.dino_from_state_dict(weights, heads=about["heads"])
    cfg = dino.cfg
    sizes = (cfg.image_px, cfg.patch_px, cfg.width, cfg.layers, cfg.registers)
    wanted = [about[name] for name in ("image", "patch", "width", "depth")]
    assert sizes == (*wanted, about.get("registers", 0))
    assert cfg.layer_scale == (about["kind"] == "dinov2")
    return dino


def share(case):
    """The tolerance of a case's floats, as a share of the largest value."""
    return float(re.search(r"abs ([\d.e-]+) times absmax", case["tolerance"]).group(1))


def check_towers(case, arrays, goldens):
    for name, about in case["models"].items():
        dino = tower(case, about, about["shapes_key"], goldens)
        image = seeded.image(*about["size"], case["image_seed"])
        pixels = normalize(jnp.asarray(image)[None], IMAGENET_MEAN, IMAGENET_STD)
        cases.near(jax.jit(dino)(pixels)[0], arrays[name], name=name, share=share(case))


CHECKS = {"dino_towers": check_towers}
