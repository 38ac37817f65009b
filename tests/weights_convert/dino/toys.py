"""Toy DINOs by the authors' names, with seeded weights."""

from __future__ import annotations

import numpy as np

from tests import seeded

WIDTH, PATCH, GRID = 64, 4, 3


def shapes(*, v2=False, registers=0, swiglu=False, layers=2, width=WIDTH):
    out = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + GRID**2, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
    }
    if v2:
        out["mask_token"] = (1, width)
    if registers:
        out["register_tokens"] = (1, registers, width)
    hidden = 8 * -(-8 * width // 24)
    mlp = {"w12": (2 * hidden, width), "w3": (width, hidden)}
    mlp = mlp if swiglu else {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {f"mlp.{name}": shape for name, shape in mlp.items()}
    for i in range(layers):
        for name, shape in linear.items():
            out |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            out |= {f"blocks.{i}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
        if v2:
            out |= {f"blocks.{i}.{name}.gamma": (width,) for name in ("ls1", "ls2")}
    return out | {"norm.weight": (width,), "norm.bias": (width,)}


def state_dict(seed=3, dtype=np.float32, **sizes):
    weights = seeded.state_dict(shapes(**sizes), seed)
    return {key: value.astype(dtype) for key, value in weights.items()}


KINDS = {
    "v1": {},
    "v2": {"v2": True},
    "registers": {"v2": True, "registers": 4},
    "swiglu": {"v2": True, "swiglu": True},
}
