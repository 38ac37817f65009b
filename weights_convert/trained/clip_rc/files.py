"""CLIP-RC's weights: files of the published code, and ours. Spec clip_rc, section 13.

A published file holds the whole model, CLIP's two towers included, and layers that nothing uses. Of
it everything is kept, so that it can be written again bit for bit. Our training keeps what it
trained; with the CLIP it began with, a published file can be made of that, too. Both are
safetensors by our paths with a record. The key map is in `clip_rc_keys`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.clip_rc.encoder import crop_image_tower
from clipseg_jax.methods.clip_rc.model import CLIPRC, CLIPRCConfig
from clipseg_jax.models.clip import CLIP
from weights_convert.clip.build import flat_arrays, install
from weights_convert.clip.convert import sha256
from weights_convert.clip.layouts import unwrap
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import (
    Converted,
    is_converted,
    load_converted,
    save_converted,
)
from weights_convert.formats.reader import read
from weights_convert.formats.torch_writer import write_torch
from weights_convert.mapping import CONV
from weights_convert.trained.clip_rc.keys import CLIP_RC
from weights_convert.trained.clip_rc.published import build, from_published, sizes, to_published
from weights_convert.trained.reclip.published import fingerprint, mark_of

FORMAT = "clipseg_jax CLIP-RC 1"
_TRAINED = ("encoder.prompt", "encoder.deep_prompt", "encoder.region_level_bridge", "head.")
_MODEL = ("encoder.", "head.")
_KERNEL = "encoder.visual.conv1.kernel"
_BRIDGE = "backbone.region_level_bridge"


def recognised(stored: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is of CLIP-RC, by its keys."""
    return _BRIDGE in stored


def load_clip_rc(path: str | Path) -> Converted:
    """Arrays by our paths and a record, from a file of ours or of the published code.

    Raises:
      CheckpointError: neither, damaged, or lists every missing, unexpected and wrongly shaped key.
      FileNotFoundError: no file.
    """
    path = Path(path)
    if is_converted(path):
        return load_converted(path, FORMAT)
    checkpoint = read(path)
    stored = unwrap(checkpoint.content)
    if not recognised(stored):
        raise CheckpointError(f"{path} holds no CLIP-RC: {_BRIDGE} is missing")
    arrays = from_published(stored, str(path))
    told = {"source": path.name, "sha256": sha256(path), "kind": checkpoint.kind}
    heads = CLIPRCConfig.heads  # which no shape tells
    return Converted(arrays, _record(arrays, heads) | {"classes": None, "setting": None} | told)


def save_clip_rc(
    path: str | Path,
    model: CLIPRC,
    *,
    classes: Sequence[str],
    seen: Sequence[int],
    setting: str,
    **more: Any,
) -> Path:
    """Writes what was trained and a record to one file; `more` is kept in it (JSON).

    Atomic, checksummed; equal results are equal bytes.

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    arrays = {p: np.asarray(x) for p, x in flat_arrays(model).items() if p.startswith(_TRAINED)}
    told = _record(arrays, model.cfg.heads)
    told |= {"crop_px": model.cfg.crop_px, "clip_mark": mark_of(model.encoder.visual)}
    told |= {"classes": list(classes), "seen": list(seen), "setting": setting}
    return save_converted(path, Converted(arrays, told | more))


def is_whole(result: Converted) -> bool:
    """Whether the image tower is in it, as in published files."""
    return _KERNEL in result.arrays


def install_clip_rc(model: CLIPRC, result: Converted, source: str | Path) -> None:
    """Puts the weights of `load_clip_rc` into a model of the same sizes.

    Raises:
      CheckpointError: lists every array that doesn't fit; or it was trained with another CLIP.
    """
    own = {p: x for p, x in result.arrays.items() if p.startswith(_MODEL)}
    known = result.record["clip_mark"]
    if known != mark_of(model.encoder.visual):
        raise CheckpointError(
            f"{source} was trained with another CLIP; give the CLIP that it was trained with"
        )
    install(model, own, complete=tuple(p for p in _TRAINED if "region" not in p))


def clip_rc_from(
    result: Converted, text_embeddings: ArrayLike, *, dtype: str = "float32", **choices: Any
) -> CLIPRC:
    """The model of a whole file, with text rows (c, e) for its classes.

    `choices` of `CLIPRCConfig` are what the file cannot say: heads, dropout, remat. `dtype` is that
    of the image tower's matrix products.

    Raises:
      CheckpointError: a file of what was trained alone.
    """
    if not is_whole(result):
        raise CheckpointError("it holds what was trained, not the CLIP; give the CLIP as well")
    own = {p: x for p, x in result.arrays.items() if p.startswith(_MODEL)}
    vision, cfg = sizes(CLIP_RC.to_left(own), "the file")
    vision = dataclasses.replace(vision, dtype=dtype)
    cfg = dataclasses.replace(cfg, **{"heads": result.record["heads"], **choices})
    model = abstract(lambda rngs: build(vision, cfg, jnp.shape(text_embeddings)[0], rngs))
    rows = {"text_embeddings": np.asarray(text_embeddings, np.float32)}
    install(model, own | rows, complete=("",))
    return model


def export_clip_rc(result: Converted, path: str | Path, clip: CLIP | None = None) -> Path:
    """Writes a result as the published code reads it.

    Args:
      clip: what it was trained with, both towers; needed for what isn't whole.

    Raises:
      CheckpointError: no CLIP where one is needed, another one, or one without its text tower.
      OSError: the folder cannot be written or the disk is full.
    """
    arrays = dict(result.arrays)
    if not is_whole(result):
        if clip is None:
            raise CheckpointError(
                "CLIP-RC's published files repeat the whole CLIP, and this one holds what was "
                "trained alone: give the CLIP that it was trained with (--clip)"
            )
        if clip.cfg.text is None:
            raise CheckpointError("the CLIP has no text tower, which published files repeat")
        visual = crop_image_tower(clip.visual, result.record["crop_px"])
        if mark_of(visual) != result.record["clip_mark"]:
            raise CheckpointError("it was trained with another CLIP; give the one it was with")
        arrays |= {f"encoder.visual.{p}": np.asarray(x) for p, x in flat_arrays(visual).items()}
        arrays |= {f"text.{p}": np.asarray(x) for p, x in flat_arrays(clip.text).items()}
    return write_torch(path, {"meta": {}, "state_dict": to_published(arrays)})


def summary(record: Mapping[str, Any]) -> str:
    """A record in one line."""
    names = record["classes"]
    told = (
        f"{record['setting']}, {len(names)} classes" if names else "whose classes it doesn't tell"
    )
    return (
        f"CLIP-RC, {record['prompts']} prompts, {record['region_side']} x {record['region_side']} "
        f"regions, {told}"
    )


def _record(arrays: Mapping[str, np.ndarray], heads: int) -> dict[str, Any]:
    kernel = arrays.get(_KERNEL)
    told = {
        "format": FORMAT,
        "prompts": arrays["encoder.prompt_embeddings"].shape[0],
        "region_side": math.isqrt(arrays["encoder.region_level_bridge"].shape[0]),
        "heads": heads,
    }
    if kernel is not None:
        grid = math.isqrt(arrays["encoder.visual.positional_embedding"].shape[0])
        told |= {
            "crop_px": grid * kernel.shape[0],
            "clip_mark": fingerprint(CONV.inverse(kernel)),
        }
    return told
