"""Which names a DINO's checkpoint uses; its arrays by the authors' names, and back."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from clipseg_jax.models.dino import DINOConfig
from weights_convert.clip.layouts import join_parts, unwrap
from weights_convert.clip.other_models import DINO, other_model
from weights_convert.dino.keys import HUGGINGFACE_V1, HUGGINGFACE_V2
from weights_convert.errors import CheckpointError
from weights_convert.mapping import KeyMap, Shape, required_shape

_log = logging.getLogger(__name__)

_PATCHES = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
# A tower lies in a file by itself, or below some of these.
_PREFIXES = {"teacher", "student", "backbone", "module", "vit", "dinov2", "dinov2_with_registers"}
_CLIP = re.compile(r"(?:^|\.)(?:visual|vision_model|text_model|clip)\.")
_UNUSED = "pooler."  # of Hugging Face's ViTs, which no released DINO has trained
_QKV = re.compile(r"\.attn\.qkv\.(weight|bias)$")


class Named(NamedTuple):
    """The arrays of a checkpoint, and its layout."""

    layout: str  # "dino" (the authors'), "huggingface"
    stored: dict[str, np.ndarray]  # by the layout's names
    table: KeyMap | None = None  # from the layout's names to the authors'; None: the same


def is_dino(keys: Iterable[str]) -> bool:
    """Whether a state dict with these keys holds a DINO tower."""
    return bool(_prefixes(keys))


def identify(content: Any, source: str) -> Named:
    """Finds the tower in a checkpoint, and its layout by its keys.

    Of a checkpoint of DINO's training, which has two, the teacher is taken, as the authors release.

    Raises:
      CheckpointError: a CLIP, another model, or several towers.
    """
    arrays = unwrap(content)
    prefixes = _prefixes(arrays)
    teachers = [prefix for prefix in prefixes if "teacher" in prefix.split(".")]
    prefixes = teachers if len(prefixes) > 1 and teachers else prefixes
    if len(prefixes) > 1:
        listed = ", ".join(f"{prefix[:-1]!r:.60}" for prefix in prefixes[:5])
        raise CheckpointError(
            f"{source}: {len(prefixes)} towers, below {listed}; save the state dict of the "
            "one that is meant"
        )
    if not prefixes:
        raise CheckpointError(f"{source}: {_refusal(arrays)}")
    (prefix,) = prefixes
    stored = {
        key.removeprefix(prefix): value
        for key, value in arrays.items()
        if key.startswith(prefix) and not key.removeprefix(prefix).startswith(_UNUSED)
    }
    beside = [key for key in arrays if not key.startswith(prefix)]
    if beside:
        _log.warning(
            "only the tower below %r is read; %d tensors beside it are left out, such as %.60s",
            prefix[:-1], len(beside), beside[0],
        )  # fmt: skip
    if _PATCHES[0] in stored:
        return Named("dino", stored)
    old = any(".layernorm_before." in key for key in stored)
    return Named("huggingface", stored, HUGGINGFACE_V1 if old else HUGGINGFACE_V2)


def sketch(named: Named) -> dict[str, np.ndarray]:
    """The arrays that have authors' names, complete or not: enough to determine the sizes."""
    if named.table is None:
        return named.stored
    return join_parts(named.table.rename(named.stored)[0])


def weights(named: Named, shapes: Mapping[str, Shape], source: str) -> dict[str, np.ndarray]:
    """Weights by the authors' names.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key by its stored name.
    """
    if named.table is None:
        return named.stored  # `mapping` checks them
    parts: dict[str, Shape] = {}
    for key, shape in shapes.items():
        if _QKV.search(key):
            parts |= {f"{key}#{n}": (shape[0] // 3, *shape[1:]) for n in range(3)}
        else:
            parts[key] = shape
    return join_parts(named.table.to_right(named.stored, parts, source))


def to_huggingface(weights: Mapping[str, np.ndarray], config: DINOConfig) -> dict[str, np.ndarray]:
    """Weights by Hugging Face's names, from the authors'."""
    parts: dict[str, np.ndarray] = {}
    for key, value in weights.items():
        if _QKV.search(key):
            parts |= {f"{key}#{n}": part for n, part in enumerate(np.split(value, 3))}
        else:
            parts[key] = value
    return (HUGGINGFACE_V2 if config.layer_scale else HUGGINGFACE_V1).to_left(parts)


def config_of(weights: Mapping[str, np.ndarray], source: str, heads: int | None) -> DINOConfig:
    """The sizes of weights by the authors' names; `heads` None: one for each 64 channels.

    Raises:
      CheckpointError: the weights are too incomplete, or the heads don't fit.
    """
    width, channels, patch, other = required_shape(weights, _PATCHES[0], 4, source)
    positions = required_shape(weights, "pos_embed", 3, source)[1]
    grid = math.isqrt(max(positions - 1, 0))
    if grid < 1 or grid * grid != positions - 1 or channels != 3 or patch != other or not patch:
        raise CheckpointError(
            f"{source}: {positions} positions and patches of {patch} x {other} with {channels} "
            "channels; a DINO has a class token, a square grid and square RGB patches"
        )
    found = {int(m[1]) for key in weights if (m := re.match(r"blocks\.([0-9]{1,6})\.", key))}
    layers = 1 + max(found, default=-1)
    if layers > 2 * len(found):
        raise CheckpointError(
            f"{source}: {len(found)} blocks, numbered to {layers - 1}; check that it is complete"
        )
    registers = 0
    if "register_tokens" in weights:
        registers = required_shape(weights, "register_tokens", 3, source)[1]
    if heads is None and width % 64:
        raise CheckpointError(
            f"{source}: width {width} is no multiple of 64, the usual width of a head; give its "
            "number of heads with `heads`, or --heads N,N"
        )
    try:
        return DINOConfig(
            image_px=grid * patch,
            patch_px=patch,
            width=width,
            layers=layers,
            heads=width // 64 if heads is None else heads,
            mlp="swiglu" if any(".mlp.w12." in key for key in weights) else "gelu",
            layer_scale=any(".ls1." in key for key in weights),
            registers=registers,
            position_antialias=registers > 0,
        )
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _prefixes(keys: Iterable[str]) -> list[str]:
    """What stands before the names of each tower."""
    found = []
    for key in keys:
        for name in _PATCHES:
            prefix = key.removesuffix(name)
            if prefix != key and set(prefix.split(".")[:-1]) <= _PREFIXES:
                found.append(prefix)
    return found


def _refusal(keys: Iterable[str]) -> str:
    if (model := other_model(keys)) not in (None, DINO):
        return f"the weights of {model}, not of a DINO"
    if any(_CLIP.search(key) for key in keys):
        return "the weights of a CLIP, which load_clip reads; give those of a DINO"
    some = ", ".join(f"{key:.60}" for key in sorted(keys)[:5]) or "none"
    return f"no DINO among its tensors ({some})"
