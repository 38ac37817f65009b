"""ReCLIP's published files: recognised, brought to our paths, and written again.

Spec reclip, section 17. The key maps are in `reclip`; our own files are in `results`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.reclip.heads import BiasDecoder, PositionNet
from clipseg_jax.models.clip import VisionTransformer
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from weights_convert.clip.build import counters, is_carried, shapes_of
from weights_convert.clip.keys import OPENAI
from weights_convert.errors import CheckpointError
from weights_convert.formats.safetensors import raw_bytes
from weights_convert.mapping import CONV, KeyMap, Shape, telling_shape
from weights_convert.trained.reclip import keys as reclip

Stage = Literal["rectification", "distillation"]


class _Layout(NamedTuple):
    """The tables of one stage."""

    own: KeyMap
    twins: KeyMap
    clip: tuple[KeyMap, ...]


_LAYOUTS: dict[str, _Layout] = {
    "rectification": _Layout(
        reclip.RECTIFICATION, reclip.RECTIFICATION_TWINS, reclip.RECTIFICATION_CLIP
    ),
    "distillation": _Layout(
        reclip.DISTILLATION, reclip.DISTILLATION_TWINS, reclip.DISTILLATION_CLIP
    ),
}


class Published(NamedTuple):
    """A file of the published code whose kind is known."""

    stage: Stage
    plus_plus: bool
    stored: dict[str, np.ndarray]  # by names without the wrapper's prefix

    @property
    def class_count(self) -> int | None:
        """How many classes it was trained for."""
        value = self.stored.get(f"{self.prefix}{self._last}.bias")
        return None if value is None else value.size

    @property
    def clip_mark(self) -> int | None:
        """`fingerprint` of the CLIP that it repeats."""
        key = "decode_head.clip" if self.stage == "distillation" else "vit"
        kernel = self.stored.get(f"{key}.conv1.weight")
        return None if kernel is None else fingerprint(kernel)

    @property
    def prefix(self) -> str:
        """What stands before the head's keys."""
        return reclip.DECODE_HEAD if self.stage == "distillation" else ""

    @property
    def _last(self) -> str:
        return "decoder_conv2" if self.plus_plus else "proj_net.6"


def fingerprint(conv1: np.ndarray) -> int:
    """A number that tells CLIPs apart whatever file they come from, of a ViT's `conv1.weight`."""
    return zlib.crc32(raw_bytes(np.asarray(conv1, np.float32)))


def mark_of(visual: VisionTransformer, dtype: type = np.float32) -> int:
    """`fingerprint` of a model's image tower, in the precision `dtype`."""
    return fingerprint(CONV.inverse(np.asarray(visual.conv1.kernel[...], dtype)))


def recognise(stored: Mapping[str, np.ndarray]) -> Published | None:
    """What a state dict is, by its keys; None for anything but a file of ReCLIP."""
    stored = {key.removeprefix(reclip.PREFIX): value for key, value in stored.items()}
    head = reclip.DECODE_HEAD

    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in stored)

    if has(f"{head}proj_net.", f"{head}pe_proj.", f"{head}decoder_conv2.", "backbone.res_layers."):
        stage: Stage = "distillation"
    elif has("proj_net.", "pe_proj.", "decoder_conv2.", "text_encoder.prompt_token"):
        stage, head = "rectification", ""
    else:
        return None
    return Published(stage, has(f"{head}pe_proj.", f"{head}decoder_conv2."), stored)


def by_our_paths(published: Published, source: str) -> dict[str, np.ndarray]:
    """What was trained, and the class token; the copies of CLIP are left out, unchecked.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key, or every layer that
        is stored twice with different values.
    """
    layout, stored = _LAYOUTS[published.stage], published.stored
    twins = {key: name[0] for key in stored if (name := layout.twins.right(key))}
    own = {
        key: value
        for key, value in stored.items()
        if key not in twins and not is_carried(key) and not _is_frozen(key, layout)
    }
    arrays = layout.own.to_right(own, _wanted_shapes(published, source), source)
    unlike = [
        f"~ {key}: differs from {name}, of which it is a copy"
        for key, name in twins.items()
        if name in own and not np.array_equal(stored[key], own[name])
    ]
    if unlike:
        listed = "\n  ".join(sorted(unlike))
        raise CheckpointError(f"{source} contradicts itself; nothing was loaded:\n  {listed}")
    return arrays


def _is_frozen(key: str, layout: _Layout) -> bool:
    """True for a copy of some tensor of CLIP, and for what nothing uses."""
    if layout.own.right(key) is not None:
        return False
    names = [mapped[0] for table in layout.clip if (mapped := table.right(key))]
    return key in reclip.UNUSED or any(OPENAI.right(name) is not None for name in names)


def _wanted_shapes(published: Published, source: str) -> dict[str, Shape]:
    """The shape of each array by our paths, in a model of the sizes that the file has."""
    stored, prefix = published.stored, published.prefix

    def shape(key: str, rank: int) -> Shape:
        return telling_shape(stored, key, rank, source)

    plus_plus = published.plus_plus
    classes = shape(f"{prefix}{published._last}.bias", 1)[0]
    embed, width = shape(f"{prefix}{'pe_proj' if plus_plus else 'proj_net.0'}.weight", 4)[:2]
    kind = BiasDecoder if plus_plus else PositionNet
    head = abstract(lambda rngs: kind(width, embed, classes, rngs=rngs))
    if published.stage == "rectification":
        prompt = shape("text_encoder.prompt_token", 3)[1:]
        shapes = {"reference.prompt": prompt, "visual.class_embedding": (width,)}
        return shapes | {f"head.{path}": s for path, s in shapes_of(head).items()}
    blocks = tuple(
        len({key.split(".")[3] for key in stored if key.startswith(f"backbone.res_layers.{i}.")})
        for i in range(4)
    )
    cfg = DilatedResNetConfig(blocks=blocks, width=shape("backbone.stem.6.weight", 4)[0])
    student = abstract(lambda rngs: DeepLab(cfg, embed, rngs=rngs))
    shapes = {"logit_scale": (), "teacher.visual.class_embedding": (width,)}
    shapes |= {f"student.{path}": s for path, s in shapes_of(student).items()}
    return shapes | {f"teacher.head.{path}": s for path, s in shapes_of(head).items()}


def to_published(
    arrays: Mapping[str, np.ndarray],
    stage: Stage,
    clip: Mapping[str, np.ndarray],
    *,
    half: bool = True,
) -> dict[str, np.ndarray]:
    """The state dict that the published code's strict loader takes, with all its copies of CLIP.

    Args:
      arrays: a result's, by our paths.
      clip: weights by OpenAI's names, both towers.
      half: as the code writes files on a GPU, with float16 projections, which are then stored once
        less; False: as on a CPU.

    Raises:
      CheckpointError: a CLIP without its text tower.
    """
    layout = _LAYOUTS[stage]
    clip = {key: np.asarray(v, np.float32) for key, v in clip.items() if not is_carried(key)}
    if "text_projection" not in clip or "visual.conv1.weight" not in clip:
        raise CheckpointError("ReCLIP's files repeat the whole CLIP: give one with its text tower")
    out = {}
    for table in layout.clip:
        for name, value in clip.items():
            mapped = table.left(name)
            if mapped and not (half and mapped[0] in reclip.FLOAT32_ONLY):
                key, transform = mapped
                once = half and key in ("clip.visual.proj", "clip.text_projection")
                out[key] = np.asarray(transform.inverse(value), np.float16 if once else np.float32)
    # T and R of a distilled student are ours: the published code makes them anew at each start.
    own = layout.own.to_left({k: v for k, v in arrays.items() if layout.own.left(k) is not None})
    own |= counters(own)
    own |= {twin[0]: v for key, v in own.items() if (twin := layout.twins.left(key)) is not None}
    out |= own
    if stage == "distillation":
        embed, plus_plus = clip["text_projection"].shape[1], "teacher.head.pe_proj.bias" in arrays
        last = "decoder_conv" if plus_plus else "conv3"
        classes = arrays[f"teacher.head.{last}.bias"].size
        for key in reclip.UNUSED:
            shape = (classes, embed, 1, 1) if key.endswith("weight") else (classes,)
            out[key] = np.zeros(shape, np.float32)
        return out
    return {f"{reclip.PREFIX}{key}": value for key, value in out.items()}
