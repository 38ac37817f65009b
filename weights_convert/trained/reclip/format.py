"""Files of ReCLIP and ReCLIP++: a rectified CLIP, or a distilled student. Spec reclip, section 17.

Stored: what was trained, by the paths of `ReCLIP` (stage "rectification") or `Distillation` (stage
"distillation"), without the frozen CLIP; a student's text embeddings and reference too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from clipseg_jax.methods.reclip.distill_model import Distillation
from clipseg_jax.methods.reclip.model import ReCLIP
from clipseg_jax.models.clip.read_outs import READ_OUTS
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted
from weights_convert.formats.record import maybe, one_of, text
from weights_convert.trained.format import (
    CLASS_COUNT,
    Format,
    arrays_of,
    class_summary,
    clip_fingerprint,
)
from weights_convert.trained.reclip.published import (
    from_published,
    is_distilled,
    is_plus_plus,
    recognise,
    to_published,
)

REVISIONS = ("2024", "2025")  # of the published code: their weights don't fit each other
METHODS = ("ReCLIP", "ReCLIP++")

# What of a model is stored, by the start of its paths.
_STORED = {
    "rectification": ("reference.prompt", "head.", "visual.class_embedding"),
    "distillation": (
        "student.", "logit_scale", "teacher.head.", "teacher.visual.class_embedding",
        "teacher.text_embeddings", "teacher.reference.rows",
    ),
}  # fmt: skip


def stored_arrays(model: ReCLIP | Distillation) -> dict[str, np.ndarray]:
    """What is stored of a model: what was trained, and a student's text embeddings."""
    stage = "rectification" if isinstance(model, ReCLIP) else "distillation"
    return arrays_of(model, start=_STORED[stage])


def _recognised(keys: Collection[str]) -> bool:
    return recognise(dict.fromkeys(keys, np.zeros(0))) is not None


def _from_published(
    state_dict: Mapping[str, np.ndarray], beside: Mapping[str, Any], source: str
) -> Converted:
    del beside
    published = recognise(state_dict)
    if published is None:
        raise CheckpointError(f"{source} is not a file of ReCLIP or ReCLIP++ (no head's keys)")
    entries = {"clip_mark": published.clip_fingerprint}
    return Converted(from_published(published, source), entries)


def _to_published(
    trained: Converted, clip: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    return to_published(trained.arrays, trained.record["stage"], clip)


def _record(
    arrays: Mapping[str, np.ndarray], model: ReCLIP | Distillation | None
) -> dict[str, Any]:
    distilled, plus_plus = is_distilled(arrays), is_plus_plus(arrays)
    head = "teacher.head" if distilled else "head"
    record: dict[str, Any] = {
        "method": METHODS[plus_plus],
        "stage": "distillation" if distilled else "rectification",
        "revision": None,
        "class_count": arrays[f"{head}.{'decoder_conv' if plus_plus else 'conv3'}.bias"].size,
        "clip_sha256": None,
    }
    if model is not None:
        visual = model.visual if isinstance(model, ReCLIP) else model.teacher.visual
        record["clip_mark"] = clip_fingerprint(visual)
        cfg = model.cfg if isinstance(model, ReCLIP) else model.teacher.cfg
        if cfg.read_out != "value":  # the published one is not recorded
            record["read_out"] = cfg.read_out
    return record


def _summary(record: Mapping[str, Any]) -> str:
    return (
        f"{record['method']}, {record['stage']}, revision {record['revision'] or 'not recorded'}, "
        f"{class_summary(record)}"
    )


RECLIP = Format(
    name="reclip",
    title="{method} {stage}",
    tag="clipseg_jax ReCLIP 1",
    recognised=_recognised,
    from_published=_from_published,
    to_published=_to_published,
    stored_arrays=stored_arrays,
    record=_record,
    entries=(
        {
            "method": one_of(*METHODS),
            "stage": one_of("rectification", "distillation"),
            "revision": maybe(one_of(*REVISIONS)),
            "class_count": CLASS_COUNT,
        },
        {"clip_sha256": maybe(text(64)), "read_out": one_of(*READ_OUTS)},
    ),
    summary=_summary,
)
