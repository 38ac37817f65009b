"""Files of trained CLIP-RC, and models built of them. Spec clip_rc, section 13.

A published file holds the whole model, both towers of CLIP included, and layers that nothing uses.
All of it is kept, so that it can be exported again bit for bit. Our training stores only what it
trained; with the CLIP that it started from, a published file can be made of that too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.clip_rc.encoder import crop_image_tower
from clipseg_jax.methods.clip_rc.model import CLIPRC, CLIPRCConfig
from clipseg_jax.models.clip import with_class_token
from weights_convert.clip.build import clip_from_state_dict, install
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted
from weights_convert.formats.record import maybe, text, whole
from weights_convert.mapping import CONV
from weights_convert.trained.clip_rc import keys
from weights_convert.trained.clip_rc.published import build, from_published, sizes, to_published
from weights_convert.trained.files import check_clip
from weights_convert.trained.format import (
    Format,
    arrays_of,
    clip_fingerprint,
    fingerprint,
    whole_clip,
)

_TRAINED = ("encoder.prompt", "encoder.deep_prompt", "encoder.region_level_bridge", "head.")
_MODEL = ("encoder.", "head.")
_CONV1 = "encoder.visual.conv1.kernel"
_BRIDGE = "backbone.region_level_bridge"


def is_whole(trained: Converted) -> bool:
    """Whether a file holds the image tower too, as published files do."""
    return _CONV1 in trained.arrays


def install_clip_rc(model: CLIPRC, trained: Converted, source: str | Path) -> None:
    """Puts trained weights into a model of the same sizes.

    Raises:
      CheckpointError: lists every array that doesn't fit; or they were trained with another CLIP.
    """
    check_clip(source, trained.record, clip_fingerprint(model.encoder.visual))
    complete = tuple(path for path in _TRAINED if "region" not in path)
    install(model, _of_model(trained), complete=complete)


def build_clip_rc(
    trained: Converted,
    text_embeddings: ArrayLike,
    *,
    heads: int | None = None,
    dropout: float = CLIPRCConfig.dropout,
    remat: bool = CLIPRCConfig.remat,
    dtype: str = "float32",
) -> CLIPRC:
    """The model of a whole file, with text embeddings (c, e) of its classes.

    `heads`, `dropout` and `remat` as in `CLIPRCConfig`; heads None: the recorded number. `dtype` is
    that of the image tower's matrix products.

    Raises:
      CheckpointError: a file without the CLIP.
    """
    if not is_whole(trained):
        raise CheckpointError("the file holds what was trained, not the CLIP; give the CLIP too")
    arrays = _of_model(trained)
    vision, cfg = sizes(keys.CLIP_RC.to_left(arrays), "the file")
    vision = dataclasses.replace(vision, dtype=dtype)
    heads = trained.record["heads"] if heads is None else heads
    cfg = dataclasses.replace(cfg, heads=heads, dropout=dropout, remat=remat)
    model = abstract(lambda rngs: build(vision, cfg, jnp.shape(text_embeddings)[0], rngs))
    arrays["text_embeddings"] = np.asarray(text_embeddings, np.float32)
    install(model, arrays, complete=("",))
    return model


def _of_model(trained: Converted) -> dict[str, np.ndarray]:
    return {path: x for path, x in trained.arrays.items() if path.startswith(_MODEL)}


def _recognised(published: Collection[str]) -> bool:
    return _BRIDGE in published


def _from_published(
    state_dict: Mapping[str, np.ndarray], beside: Mapping[str, Any], source: str
) -> Converted:
    del beside
    if not _recognised(state_dict):
        raise CheckpointError(f"{source} holds no CLIP-RC: {_BRIDGE} is missing")
    return Converted(from_published(state_dict, source), {"setting": None})


def _to_published(trained: Converted, clip: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    arrays = dict(trained.arrays)
    if not is_whole(trained):
        towers = clip_from_state_dict(whole_clip(clip, "CLIP-RC"))
        visual = with_class_token(towers.visual, "CLIP-RC")
        visual = crop_image_tower(visual, trained.record["crop_px"])
        arrays |= {f"encoder.visual.{path}": x for path, x in arrays_of(visual).items()}
        arrays |= {f"text.{path}": x for path, x in arrays_of(towers.text).items()}
    return {"meta": {}, "state_dict": to_published(arrays)}


def _record(arrays: Mapping[str, np.ndarray], model: CLIPRC | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "prompts": arrays["encoder.prompt_embeddings"].shape[0],
        "region_side": math.isqrt(arrays["encoder.region_level_bridge"].shape[0]),
        # No shape determines the number of heads.
        "heads": CLIPRCConfig.heads if model is None else model.cfg.heads,
    }
    if model is not None:
        record["crop_px"] = model.cfg.crop_px
        record["clip_mark"] = clip_fingerprint(model.encoder.visual)
    elif _CONV1 in arrays:
        grid = math.isqrt(arrays["encoder.visual.positional_embedding"].shape[0])
        record["crop_px"] = grid * arrays[_CONV1].shape[0]
        record["clip_mark"] = fingerprint(CONV.inverse(arrays[_CONV1]))
    return record


def _summary(record: Mapping[str, Any]) -> str:
    names = record["classes"]
    shown = f"{record.get('setting')}, {len(names)} classes" if names else "classes not recorded"
    side = record["region_side"]
    return f"CLIP-RC, {record['prompts']} prompts, {side} x {side} regions, {shown}"


CLIP_RC = Format(
    name="clip_rc",
    title="CLIP-RC",
    tag="clipseg_jax CLIP-RC 1",
    recognised=_recognised,
    from_published=_from_published,
    to_published=_to_published,
    stored_arrays=lambda model: arrays_of(model, start=_TRAINED),
    record=_record,
    entries=(
        {"prompts": whole(1, 10_000), "region_side": whole(1, 1000), "heads": whole(1, 2**12)},
        {"crop_px": whole(1, 2**14), "setting": maybe(text())},
    ),
    summary=_summary,
)
