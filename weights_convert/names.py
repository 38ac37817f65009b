"""Finds out what a checkpoint is, and gives its tensors OpenAI's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from weights_convert.clip import HUGGINGFACE
from weights_convert.maskclip import STATE_DICT, WEIGHTS
from weights_convert.reader import Checkpoint, CheckpointError, tensors

# Numbers that the released archives carry beside the weights.
_SCALARS = ("input_resolution", "context_length", "vocab_size")
_TEXT = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")
# Side of the attention pool's grid by tower width; MaskCLIP's files leave its positions out.
_POOL_GRIDS = {64: 7, 80: 9, 96: 12, 128: 14}


class Named(NamedTuple):
    """A checkpoint in OpenAI's names."""

    layout: str  # "openai", "huggingface", "open_clip", "maskclip weights", "maskclip"
    weights: dict[str, np.ndarray]
    carried: dict[str, np.ndarray]  # what is no weight but belongs into an exported file
    absent: tuple[str, ...] = ()  # weights that this layout never has; they are NaN


def unwrap(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """A checkpoint's tensors by the names they are stored under, without a wrapping dictionary."""
    content = checkpoint.content
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return tensors(content)


def name(checkpoint: Checkpoint) -> Named:
    """OpenAI-named weights of any supported layout.

    Raises:
      CheckpointError: no CLIP in it, or a MaskCLIP backbone without its projections.
    """
    stored = unwrap(checkpoint)
    if not stored:
        raise CheckpointError("it holds no tensors")
    if all(key.startswith("module.") for key in stored):
        stored = {key.removeprefix("module."): value for key, value in stored.items()}
    if any(key.startswith("vision_model.") for key in stored):
        return _huggingface(stored)
    if any(key.startswith(("clip.layers.", "clip.layer1.")) for key in stored):
        return _maskclip(stored, "maskclip weights")
    if any(key.startswith(("backbone.layers.", "backbone.layer1.")) for key in stored):
        return _maskclip(stored, "maskclip")
    if not any(key.startswith("visual.") for key in stored):
        some = ", ".join(sorted(stored)[:5])
        raise CheckpointError(f"no CLIP among its {len(stored)} tensors ({some}, ...)")
    layout = "openai"
    if "text.text_projection" in stored or "logit_bias" in stored:
        layout = "open_clip"
        stored = {
            key.removeprefix("text.") if key[5:].startswith(_TEXT) else key: value
            for key, value in stored.items()
            if key != "logit_bias"
        }
    carried = {k: v for k, v in stored.items() if k in _SCALARS or _is_counter(k)}
    return Named(layout, {k: v for k, v in stored.items() if k not in carried}, carried)


def _is_counter(key: str) -> bool:
    return key.endswith(".num_batches_tracked")


def _huggingface(stored: Mapping[str, np.ndarray]) -> Named:
    stored = {key: v for key, v in stored.items() if not key.endswith("embeddings.position_ids")}
    renamed, unknown = HUGGINGFACE.rename(stored)
    _refuse(unknown, "Hugging Face CLIP")
    return Named("huggingface", join_blocks(renamed), {})


def _maskclip(stored: Mapping[str, np.ndarray], layout: str) -> Named:
    table = WEIGHTS if layout == "maskclip weights" else STATE_DICT
    ignored = ("decode_head.text_embeddings", "decode_head._iter_counter")
    renamed, unknown = table.rename({k: v for k, v in stored.items() if k not in ignored})
    _refuse(unknown, "MaskCLIP")
    if "visual.proj" not in renamed and "visual.attnpool.c_proj.weight" not in renamed:
        raise CheckpointError(
            "a MaskCLIP backbone without its projections; use the *_clip_weights.pth that was "
            "made with it"
        )
    absent = ()
    if "visual.layer1.0.conv1.weight" in renamed:
        width = renamed["visual.layer1.0.conv1.weight"].shape[0]
        rows = _POOL_GRIDS.get(width, 7) ** 2 + 1
        absent = ("visual.attnpool.positional_embedding",)
        # NaN, not zeros: MaskCLIP never looks at it, and whoever does shall see that it is missing.
        renamed[absent[0]] = np.full((rows, 32 * width), np.nan, np.float32)
    carried = {k: v for k, v in renamed.items() if _is_counter(k)}
    return Named(layout, {k: v for k, v in renamed.items() if k not in carried}, carried, absent)


def _refuse(unknown: list[str], what: str) -> None:
    if unknown:
        listed = "\n  + ".join(sorted(unknown))
        raise CheckpointError(f"{what} keys that are not expected; nothing was loaded:\n  + {listed}")


def join_blocks(renamed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts "name#0", "name#1", "name#2" together as "name", one below the other."""
    out = {key: value for key, value in renamed.items() if "#" not in key}
    for whole in dict.fromkeys(key.split("#")[0] for key in renamed if "#" in key):
        parts = [renamed.get(f"{whole}#{n}") for n in range(3)]
        if any(part is None for part in parts):
            raise CheckpointError(f"{whole} lacks one of its query, key and value parts")
        out[whole] = np.concatenate(parts)  # type: ignore[arg-type]
    return out


def to_huggingface(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenAI-named ViT weights in Hugging Face's names.

    Raises:
      CheckpointError: a ResNet; Hugging Face has none.
    """
    parts: dict[str, np.ndarray] = {}
    for key, value in weights.items():
        if re.search(r"\.attn\.in_proj_(weight|bias)$", key):
            parts |= {f"{key}#{n}": part for n, part in enumerate(np.split(value, 3))}
        else:
            parts[key] = value
    try:
        return HUGGINGFACE.to_torch(parts)
    except AssertionError as error:
        raise CheckpointError("Hugging Face's CLIP has ViT towers only") from error


def to_maskclip(
    weights: Mapping[str, np.ndarray], carried: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """OpenAI-named weights as the content of MaskCLIP's `{M}_clip_weights.pth`, all float32."""
    pool = "visual.attnpool.positional_embedding"
    visual = {
        key: np.asarray(value, np.float32)
        for key, value in {**weights, **carried}.items()
        if key.startswith("visual.") and key != pool
    }
    content: dict[str, Any] = {"clip": {}}
    for key, value in WEIGHTS.to_torch(visual).items():
        group, leaf = key.split(".", 1)
        content.setdefault(group, {})[leaf] = value
    return content
