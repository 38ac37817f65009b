"""Files of trained MaskCLIP+, and models built of them. Spec maskclip, section 15.

Stored: the arrays of `MaskCLIPPlus` without its teacher. Published: {meta, state_dict, optimizer}.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus
from clipseg_jax.models.deeplab import DeepLabV3Plus
from weights_convert.clip.build import install, shapes_of
from weights_convert.formats.converted import Converted
from weights_convert.formats.record import entries, list_of, maybe, number, one_of, whole
from weights_convert.trained.format import CLASS_COUNT, Format, arrays_of, class_summary
from weights_convert.trained.maskclip_plus.published import (
    COUNTER,
    DECODER,
    TEXT_EMBEDDINGS,
    abstract_model,
    from_published,
    to_published,
)

_FACTORS = list_of(whole(1, 64), 4, 4)
_STUDENT = entries(
    {
        "decoder": one_of("deeplabv2", "deeplabv3plus"),
        "blocks": list_of(whole(1, 1000), 4, 4),
        "width": whole(1, 2**16),
        "variant": one_of("v1", "v1c"),
        "background": one_of(True, False),
    },
    {"strides": _FACTORS, "dilations": _FACTORS},
)


def _shapes(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> dict[str, Any]:
    return shapes_of(abstract_model(record["student"], arrays["text_embeddings"].shape))


def _counter(value: Any, at: str) -> None:
    list_of(lambda *_: None, 2, 2)(value, at)
    one_of("int64", "int32", "float32")(value[0], f"{at}[0]")
    (number(0, 2**62) if not isinstance(value[1], list) else list_of(number(0, 2**62), 1, 1))(
        value[1], f"{at}[1]"
    )


def build_maskclip_plus(trained: Converted, *, dtype: str = "float32") -> MaskCLIPPlus:
    """The model of a trained file, without a teacher: it segments.

    `dtype` is that of its convolutions.
    """
    arrays = trained.arrays
    model = abstract_model(trained.record["student"], arrays["text_embeddings"].shape, dtype)
    install(model, arrays, complete=("",))
    return model


def _recognised(keys: Collection[str]) -> bool:
    return TEXT_EMBEDDINGS in keys and any(key.startswith(DECODER) for key in keys)


def _from_published(
    state_dict: Mapping[str, np.ndarray], beside: Mapping[str, Any], source: str
) -> Converted:
    arrays, student = from_published(state_dict, source)
    meta = beside.get("meta") or {}
    names, counter = meta.get("CLASSES"), state_dict.get(COUNTER)
    entries = {
        "student": student,
        "classes": list(names) if names else None,
        "steps": meta.get("iter"),
        "iter_counter": None if counter is None else [str(counter.dtype), counter.tolist()],
    }
    return Converted(arrays, entries)


def _to_published(trained: Converted, clip: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    names = trained.record["classes"]
    meta = {"CLASSES": tuple(names)} if names else {}
    return {"meta": meta, "state_dict": to_published(trained, clip)}


def _stored_arrays(model: MaskCLIPPlus) -> dict[str, np.ndarray]:
    arrays = arrays_of(model)
    return {path: x for path, x in arrays.items() if not path.startswith("teacher.")}


def _record(arrays: Mapping[str, np.ndarray], model: MaskCLIPPlus | None) -> dict[str, Any]:
    background = "background_embedding" in arrays
    record: dict[str, Any] = {"class_count": arrays["text_embeddings"].shape[0] + background}
    if model is not None:
        cfg = model.student.backbone.cfg
        v3_plus = isinstance(model.student, DeepLabV3Plus)
        record["student"] = {
            "decoder": "deeplabv3plus" if v3_plus else "deeplabv2",
            "blocks": list(cfg.blocks),
            "width": cfg.width,
            "variant": cfg.variant,
            "background": background,
            "strides": list(cfg.strides),
            "dilations": list(cfg.dilations),
        }
    return record


def _summary(record: Mapping[str, Any]) -> str:
    student = record["student"]
    depth = 2 + 3 * sum(student["blocks"])
    return (
        f"MaskCLIP+, {student['decoder']}, ResNet-{depth} {student['variant']}, "
        f"{class_summary(record)}"
    )


MASKCLIP_PLUS = Format(
    name="maskclip_plus",
    title="MaskCLIP+",
    tag="clipseg_jax MaskCLIP+ 1",
    recognised=_recognised,
    from_published=_from_published,
    to_published=_to_published,
    stored_arrays=_stored_arrays,
    record=_record,
    shapes=_shapes,
    entries=(
        {"class_count": CLASS_COUNT, "student": _STUDENT},
        {"steps": maybe(whole(0, 2**62)), "iter_counter": maybe(_counter)},
    ),
    summary=_summary,
)
