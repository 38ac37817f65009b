"""MaskCLIP+: the key maps of trained models, and their state dicts both ways.

Left: mmsegmentation's names, which include a copy of the teacher CLIP; right: the paths of
`MaskCLIPPlus`, without the teacher. Spec maskclip, section 15.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus, make_student
from clipseg_jax.models.resnet import DilatedResNetConfig
from weights_convert.clip import layouts as names
from weights_convert.clip.build import counters, is_carried, shapes_of
from weights_convert.clip.keys import batch_norm
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted
from weights_convert.mapping import CONV, KeyMap, Rule
from weights_convert.trained.imagenet import blocks_of, resnet_rules, resnet_v1_rules

HEAD = "decode_head."
DECODER = f"{HEAD}decode_module."
TEXT_EMBEDDINGS, BACKGROUND, COUNTER = (
    f"{HEAD}{name}" for name in ("text_embeddings", "bg_embeddings", "_iter_counter")
)
_TEACHER = re.compile(r"decode_head\.(clip\.|proj\.|[qkvc]_proj\.)")
_BACKBONES = {"v1c": resnet_rules, "v1": resnet_v1_rules}


def _unit(left: str, right: str) -> list[Rule]:
    return [
        Rule(f"{left}.conv.weight", f"{right}.conv.kernel", CONV),
        *batch_norm(f"{left}.bn", f"{right}.norm"),
    ]


def _separable(left: str, right: str) -> list[Rule]:
    return [
        *_unit(f"{left}.depthwise_conv", f"{right}.depthwise"),
        *_unit(f"{left}.pointwise_conv", f"{right}.pointwise"),
    ]


_DECODERS = {
    "deeplabv2": _unit(f"{DECODER}aspp_modules.{{i}}", "student.aspp.{i}"),
    "deeplabv3plus": [
        *_unit(f"{DECODER}image_pool.1", "student.image_pool"),
        *_unit(f"{DECODER}aspp_modules.0", "student.aspp.0"),
        *_separable(f"{DECODER}aspp_modules.{{i}}", "student.aspp.{i}"),
        *_unit(f"{DECODER}bottleneck", "student.bottleneck"),
        *_unit(f"{DECODER}c1_bottleneck", "student.low_level"),
        *_separable(f"{DECODER}sep_bottleneck.{{i}}", "student.decoder.{i}"),
    ],
}


@functools.cache
def key_map(decoder: str, variant: str) -> KeyMap:
    """Rules between the published names and `MaskCLIPPlus`, without the teacher."""
    return KeyMap(
        [
            *_BACKBONES[variant]("backbone.", "student.backbone."),
            *_DECODERS[decoder],
            Rule(TEXT_EMBEDDINGS, "text_embeddings"),
            Rule(BACKGROUND, "background_embedding"),
        ]
    )


def from_published(
    stored: Mapping[str, np.ndarray], source: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A published state dict by our paths, and the student's sizes; the copy of CLIP is left out.

    Raises:
      CheckpointError: its sizes cannot be determined; or lists every missing, unexpected and
        wrongly shaped key.
    """
    weights = {
        key: value
        for key, value in stored.items()
        if not is_carried(key) and key != COUNTER and not _TEACHER.match(key)
    }
    v1 = "backbone.conv1.weight" in weights
    stem = weights.get("backbone.conv1.weight" if v1 else "backbone.stem.6.weight")
    text = weights.get(TEXT_EMBEDDINGS)
    if stem is None or stem.ndim != 4 or text is None or text.ndim != 2:
        raise CheckpointError(
            f"{source} holds no MaskCLIP+ by mmsegmentation's names (backbone.stem.6.weight, "
            f"{TEXT_EMBEDDINGS}); it begins with {', '.join(list(stored)[:3])}"
        )
    v3_plus = any(key.startswith(f"{DECODER}image_pool.") for key in weights)
    sizes = {
        "decoder": "deeplabv3plus" if v3_plus else "deeplabv2",
        "blocks": list(blocks_of(weights, "backbone.")),
        "width": stem.shape[0],
        "variant": "v1" if v1 else "v1c",
        "background": BACKGROUND in weights,
    }
    shapes = shapes_of(abstract_model(sizes, text.shape))
    table = key_map(sizes["decoder"], sizes["variant"])
    return table.to_right(weights, shapes, source), sizes


def to_published(
    trained: Converted, clip: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The state dict that mmsegmentation loads.

    Args:
      clip: weights by OpenAI's names; adds the teacher, which training needs and the published
        code's files hold.

    Raises:
      CheckpointError: a CLIP with another embedding width.
    """
    sizes = trained.record["student"]
    out = key_map(sizes["decoder"], sizes["variant"]).to_left(trained.arrays)
    out = {key: np.asarray(value) for key, value in out.items()}
    out |= counters(out)
    dtype, value = trained.record.get("iter_counter") or ["int64", trained.record["steps"] or 0]
    out[COUNTER] = np.asarray(value, np.dtype(dtype))
    return out if clip is None else out | _teacher(clip, out[TEXT_EMBEDDINGS].shape[1])


def _teacher(clip: Mapping[str, np.ndarray], embed_dim: int) -> dict[str, np.ndarray]:
    """The frozen tower, and its projections as 1x1 convolutions."""
    groups = names.to_maskclip(clip)
    last = groups["proj" if "proj" in groups else "c_proj"]["weight"]
    if last.shape[0] != embed_dim:
        raise CheckpointError(
            f"the CLIP's embedding width is {last.shape[0]}, the text embeddings have {embed_dim}; "
            "give the CLIP that the student was trained with"
        )
    out = {}
    for group, weights in groups.items():
        for name, value in weights.items():
            if name.endswith(".num_batches_tracked"):
                value = value.astype(np.int64)
            if group != "clip" and value.ndim == 2:
                value = value[..., None, None]
            out[f"{HEAD}{group}.{name}"] = np.asarray(value)
    return out


def abstract_model(
    sizes: Mapping[str, Any], text_shape: tuple[int, ...], dtype: str = "float32"
) -> MaskCLIPPlus:
    """An abstract model of these sizes; strides and dilations default to the published ones."""
    layout = {name: tuple(sizes[name]) for name in ("strides", "dilations") if name in sizes}
    cfg = DilatedResNetConfig(
        tuple(sizes["blocks"]), sizes["width"], variant=sizes["variant"], dtype=dtype, **layout
    )
    return abstract(
        lambda rngs: MaskCLIPPlus(
            make_student(sizes["decoder"], cfg, text_shape[1], rngs=rngs),
            np.zeros(text_shape, np.float32),
            background=sizes["background"],
            rngs=rngs,
        )
    )
