"""Files of trained WeCLIP and WTCLIP heads. Spec weclip, section 12; spec wtclip, section 7."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from clipseg_jax.methods.weclip.model import WeCLIP
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted
from weights_convert.formats.record import one_of
from weights_convert.trained.format import (
    CLASS_COUNT,
    Format,
    arrays_of,
    class_summary,
    clip_fingerprint,
    fingerprint,
)
from weights_convert.trained.weclip.keys import ENCODER
from weights_convert.trained.weclip.published import WRAPPER, from_published, to_published

METHODS = ("WeCLIP", "WTCLIP")
_HALF = np.float16  # as published files hold their CLIP


def _recognised(keys: Collection[str]) -> bool:
    return any(key.removeprefix(WRAPPER).startswith("decoder_fts_fuse.") for key in keys)


def _from_published(
    state_dict: Mapping[str, np.ndarray], beside: Mapping[str, Any], source: str
) -> Converted:
    del beside
    if not _recognised(state_dict):
        raise CheckpointError(f"{source} holds no head of WeCLIP or WTCLIP (decoder_fts_fuse.*)")
    kernels = [v for k, v in state_dict.items() if k.endswith(f"{ENCODER}visual.conv1.weight")]
    entries = {"clip_mark": fingerprint(kernels[0], _HALF) if kernels else None}
    return Converted(from_published(state_dict, source), entries)


def _to_published(
    trained: Converted, clip: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    return to_published(trained.arrays, clip)


def _record(arrays: Mapping[str, np.ndarray], model: WeCLIP | None) -> dict[str, Any]:
    gate_or_wavelet = ("head.fusion.gate.", "head.decoder.wavelet.")
    record: dict[str, Any] = {
        "method": METHODS[any(path.startswith(gate_or_wavelet) for path in arrays)],
        "class_count": arrays["head.decoder.classifier.bias"].size,
    }
    if model is not None:
        record["clip_mark"] = clip_fingerprint(model.clip.visual, _HALF)
    return record


WECLIP = Format(
    name="weclip",
    title="{method}",
    tag="clipseg_jax WeCLIP 1",
    recognised=_recognised,
    from_published=_from_published,
    to_published=_to_published,
    stored_arrays=lambda model: arrays_of(model, start=("head.",)),
    record=_record,
    entries=({"method": one_of(*METHODS), "class_count": CLASS_COUNT}, {}),
    summary=lambda record: f"{record['method']}, head of {class_summary(record)}",
    clip_dtype=_HALF,
)
