"""Which names a checkpoint uses; its arrays by OpenAI's names, and back."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weights_convert.clip.build import is_carried
from weights_convert.clip.keys import HUGGINGFACE, NAFLEX, SIGLIP
from weights_convert.clip.maskclip_keys import (
    BACKBONE_PREFIX,
    RESNET_STATE_DICT,
    RESNET_WEIGHTS,
    VIT_STATE_DICT,
    VIT_WEIGHTS,
)
from weights_convert.clip.other_models import other_model
from weights_convert.clip.shards import read_weights
from weights_convert.errors import CheckpointError
from weights_convert.formats.reader import tensors
from weights_convert.mapping import KeyMap, Shape

_log = logging.getLogger(__name__)

_TEXT = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")
# What names of a CLIP begin with, at the start of a key or behind a prefix.
_START = re.compile(r"(?:^|\.)(?=visual\.|(?:vision|text)_model\.|(?:clip|backbone)\.layer)")
_OPTIMIZER = re.compile(r"(?:^|\.)optim")  # moments by the names of what they are of
_IMAGE_TOWER = (
    "visual.conv1.weight",
    "vision_model.embeddings.patch_embedding.weight",
    "clip.layer",
    "backbone.layer",
)
_WRAPPING = ("state_dict", "model", "model_state_dict")  # where training scripts put weights
_USUAL = {*_WRAPPING, "module"}
_POOL_POSITIONS = "visual.attnpool.positional_embedding"
_PREFIXED_TEXT = tuple(f"text.{key}" for key in _TEXT)
# Side of the attention pool's grid by tower width: MaskCLIP's files omit its positions.
_POOL_GRIDS = {64: 7, 80: 9, 96: 12, 128: 14}
_IN_PROJ = re.compile(r"\.resblocks\.\d+\.attn\.in_proj_(weight|bias)$")
# What SigLIP has in place of a class token, and what no CLIP has.
SIGLIP_LAYOUTS = ("siglip", "siglip2")  # the second: of SigLIP 2's NaFlex
_OF_SIGLIP = ("vision_model.head.", "vision_model.embeddings.patch_embedding.bias")
# Entries of a MaskCLIP state dict that are not of the CLIP.
_NO_WEIGHTS = ("decode_head.text_embeddings", "decode_head._iter_counter")


class Named(NamedTuple):
    """The arrays of a checkpoint, and its layout."""

    # "openai", "open_clip", "huggingface", "siglip", "siglip2", "maskclip" (weights),
    # "maskclip state dict"
    layout: str
    stored: dict[str, np.ndarray]  # weights by the layout's names
    carried: dict[str, np.ndarray]  # what exports need beside weights; OpenAI's names
    table: KeyMap | None = None  # from the layout's names to OpenAI's; None: the same
    absent: tuple[str, ...] = ()  # weights that this layout omits


def unwrap(content: Any) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint's state dict, which may be inside a wrapping dictionary."""
    for key in _WRAPPING:  # training scripts put epoch, optimizer, ... beside it
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return tensors(content)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file's state dict, by their stored names.

    Raises:
      CheckpointError: not a checkpoint, a damaged one, or one that would run code.
    """
    return unwrap(read_weights(Path(path)).content)


def identify(content: Any) -> Named:
    """Determines a checkpoint's layout by its keys.

    Raises:
      CheckpointError: not a CLIP, several of them, or a MaskCLIP backbone without its projections.
    """
    stored = _find(tensors(content))
    if any(key.startswith(_OF_SIGLIP) for key in stored):
        patches = stored.get("vision_model.embeddings.patch_embedding.weight")
        if patches is not None and patches.ndim == 2:
            return _split("siglip2", stored, NAFLEX)
        return _split("siglip", stored, SIGLIP)
    if any(key.startswith(("vision_model.", "text_model.")) for key in stored):
        return _split("huggingface", stored, HUGGINGFACE)
    if any(key.startswith(("clip.layer", "backbone.layer")) for key in stored):
        return _maskclip(stored)
    if not any(key.startswith("visual.") for key in stored):
        some = ", ".join(f"{key:.60}" for key in sorted(stored)[:5]) or "none"
        raise CheckpointError(f"no CLIP among its {len(stored)} tensors ({some})")
    layout = "openai"
    if "text.text_projection" in stored or "logit_bias" in stored:
        layout = "open_clip"
        stored = {
            key.removeprefix("text.") if key.startswith(_PREFIXED_TEXT) else key: value
            for key, value in stored.items()
        }
    return _split(layout, stored)


def vision_only(named: Named) -> Named:
    """The same without the text tower."""
    table = named.table
    stored = {}
    for key, value in named.stored.items():
        mapped = table.right(key) if table else (key, None)
        if mapped is None or mapped[0].startswith("visual."):
            stored[key] = value
    carried = {k: v for k, v in named.carried.items() if k.startswith(("visual.", "vision_model."))}
    return named._replace(stored=stored, carried=carried)


def sketch(named: Named) -> dict[str, np.ndarray]:
    """The arrays that have OpenAI names, complete or not: enough to determine the sizes."""
    if named.table is None:
        return named.stored
    renamed, _ = named.table.rename(named.stored)
    return join_parts(renamed) | _nan(renamed, named.absent)


def weights(named: Named, shapes: Mapping[str, Shape], source: str) -> dict[str, np.ndarray]:
    """Weights by OpenAI's names, of these shapes; NaN for weights that the layout omits.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key by its stored name.
    """
    if named.table is None:
        return named.stored  # OpenAI's names already: `mapping` checks them
    parts = {
        part: shape
        for key, whole in shapes.items()
        if key not in named.absent
        for part, shape in _parts(key, whole, named.layout)
    }
    renamed = named.table.to_right(named.stored, parts, source)
    return join_parts(renamed) | _nan(renamed, named.absent)


def _find(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the one CLIP in a file, by names without the prefix that they share.

    The prefix may be that of a wrapping dictionary ("state_dict."), of DataParallel ("module.") or
    of a larger model ("clip_model."), whose other arrays are left out.

    Raises:
      CheckpointError: several CLIPs, or another model whose names are known.
    """
    prefixes: dict[str, bool] = {}  # whether an image tower is there
    for key in arrays:
        if (match := _START.search(key)) and not _OPTIMIZER.search(key):
            prefix, name = key[: match.end()], key[match.end() :]
            prefixes[prefix] = prefixes.get(prefix, False) or name.startswith(_IMAGE_TOWER)
    whole = [prefix for prefix, has_tower in prefixes.items() if has_tower] or [*prefixes]
    usual = [prefix for prefix in whole if set(prefix.split(".")[:-1]) <= _USUAL]
    found = usual if len(whole) > 1 and usual else whole
    if "" in found:
        found = [""]
    if len(found) > 1:
        listed = ", ".join(f"{prefix[:-1]!r:.60}" for prefix in found[:5])
        raise CheckpointError(
            f"{len(found)} CLIPs, below {listed}; save the state dict of the one that is meant"
        )
    prefix = found[0] if found else ""
    # With no prefix all names are used, and those of another CLIP are listed as unexpected.
    if others := [each for each in whole if prefix and each != prefix]:
        _log.warning(
            "the CLIP below %r is read; others lie below %s",
            prefix[:-1], ", ".join(f"{each[:-1]!r:.60}" for each in others[:5]),
        )  # fmt: skip
    stored = {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }
    # Of the same state dict: an optimizer and random states beside that are in most checkpoints.
    parts = prefix.split(".")
    root = "".join(f"{part}." for part in itertools.takewhile(_WRAPPING.__contains__, parts))
    beside = [key for key in arrays if key.startswith(root) and not key.startswith(prefix)]
    if beside and not others:
        _log.warning(
            "only the CLIP below %r is read; %d tensors beside it are left out, such as %.60s",
            prefix[:-1], len(beside), beside[0],
        )  # fmt: skip
    if (model := other_model(stored)) is not None:
        raise CheckpointError(f"the weights of {model}; only CLIP is supported")
    return stored


def _split(
    layout: str,
    stored: Mapping[str, np.ndarray],
    table: KeyMap | None = None,
    absent: tuple[str, ...] = (),
) -> Named:
    carried = {
        key: value
        for key, value in stored.items()
        if is_carried(key) and not (layout in SIGLIP_LAYOUTS and key == "logit_bias")
    }
    weights = {key: value for key, value in stored.items() if key not in carried}
    return Named(layout, weights, carried, table, absent)


def _maskclip(stored: Mapping[str, np.ndarray]) -> Named:
    stored = {key: value for key, value in stored.items() if key not in _NO_WEIGHTS}
    layout = "maskclip" if any(key.startswith("clip.") for key in stored) else "maskclip state dict"
    if not any(key.endswith(("proj.weight", "c_proj.weight")) and key.count(".") < 3
               for key in stored):  # fmt: skip
        raise CheckpointError(
            "a MaskCLIP backbone without its projections; use the *_clip_weights.pth that "
            "belongs to it"
        )
    if any(key.startswith(("clip.layer1.", "backbone.layer1.")) for key in stored):
        table = RESNET_WEIGHTS if layout == "maskclip" else RESNET_STATE_DICT
        named = _split(layout, stored, table, (_POOL_POSITIONS,))
    else:
        table = VIT_WEIGHTS if layout == "maskclip" else VIT_STATE_DICT
        named = _split(layout, stored, table)
    return named._replace(carried=table.rename(named.carried)[0])


def _nan(renamed: Mapping[str, np.ndarray], absent: tuple[str, ...]) -> dict[str, np.ndarray]:
    """NaN rather than zeros for absent weights, so that a use of them is noticed."""
    if not absent or "visual.layer1.0.conv1.weight" not in renamed:
        return {}
    width = renamed["visual.layer1.0.conv1.weight"].shape[0]
    positions = _POOL_GRIDS.get(width, 7) ** 2 + 1
    return {key: np.broadcast_to(np.float32(np.nan), (positions, 32 * width)) for key in absent}


def _parts(key: str, shape: Shape, layout: str) -> list[tuple[str, Shape]]:
    """The parts of a weight in a layout: Hugging Face stores query, key and value separately."""
    if layout in ("huggingface", *SIGLIP_LAYOUTS) and _IN_PROJ.search(key):
        return [(f"{key}#{n}", (shape[0] // 3, *shape[1:])) for n in range(3)]
    return [(key, shape)]


def join_parts(renamed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenates "name#0", "name#1", "name#2" along the first axis as "name"."""
    out = {key: value for key, value in renamed.items() if "#" not in key}
    for whole in dict.fromkeys(key.split("#")[0] for key in renamed if "#" in key):
        parts = [renamed[key] for n in range(3) if (key := f"{whole}#{n}") in renamed]
        same = len(parts) == 3 and len({part.shape for part in parts}) == 1 and parts[0].ndim > 0
        out[whole] = np.concatenate(parts) if same else parts[0]
    return out


def to_huggingface(
    weights: Mapping[str, np.ndarray], table: KeyMap = HUGGINGFACE
) -> dict[str, np.ndarray]:
    """Weights of a ViT or of SigLIP by Hugging Face's names, from OpenAI's; `table` is of them.

    Raises:
      CheckpointError: a ResNet, which Hugging Face does not support.
    """
    parts: dict[str, np.ndarray] = {}
    for key, value in weights.items():
        if _IN_PROJ.search(key):
            parts |= {f"{key}#{n}": part for n, part in enumerate(np.split(value, 3))}
        else:
            parts[key] = value
    try:
        return table.to_left(parts)
    except KeyError as error:
        raise CheckpointError(
            "Hugging Face's CLIP supports only ViT towers, not ResNets"
        ) from error


def to_maskclip(weights: Mapping[str, np.ndarray], *, backbone: bool = False) -> dict[str, Any]:
    """The content of MaskCLIP's `{M}_clip_weights.pth`, from OpenAI's names; all float32.

    With `backbone` that of its `{M}_clip_backbone.pth`, without the projections.
    """
    visual = {
        key: np.asarray(value, np.float32)
        for key, value in weights.items()
        if key.startswith("visual.") and key != _POOL_POSITIONS
    }
    table = VIT_WEIGHTS if "visual.proj" in visual else RESNET_WEIGHTS
    groups: dict[str, Any] = {"clip": {}}
    for key, value in table.to_left(visual).items():
        group, leaf = key.split(".", 1)
        groups.setdefault(group, {})[leaf] = value
    if not backbone:
        return groups
    tower = {f"{BACKBONE_PREFIX}{key}": value for key, value in groups["clip"].items()}
    return {"meta": {}, "state_dict": tower}
