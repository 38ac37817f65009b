"""ReCLIP's published state dicts: recognised, renamed to our paths, and written again.

Spec reclip, section 17. The key maps are in `keys`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.reclip.heads import BiasDecoder, PositionNet
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNetConfig
from weights_convert.clip.build import counters, is_carried, shapes_of
from weights_convert.clip.keys import OPENAI
from weights_convert.errors import CheckpointError
from weights_convert.mapping import KeyMap, Shape, required_shape
from weights_convert.trained.format import fingerprint, whole_clip
from weights_convert.trained.reclip import keys as reclip

Stage = Literal["rectification", "distillation"]


class _Layout(NamedTuple):
    """The key maps of one stage."""

    trained: KeyMap
    copies: KeyMap
    clip: tuple[KeyMap, ...]


_LAYOUTS: dict[str, _Layout] = {
    "rectification": _Layout(
        reclip.RECTIFICATION, reclip.RECTIFICATION_COPIES, reclip.RECTIFICATION_CLIP
    ),
    "distillation": _Layout(
        reclip.DISTILLATION, reclip.DISTILLATION_COPIES, reclip.DISTILLATION_CLIP
    ),
}


class Published(NamedTuple):
    """A published state dict, its stage and its method."""

    stage: Stage
    plus_plus: bool
    stored: dict[str, np.ndarray]  # without the prefix of the wrapper

    @property
    def clip_fingerprint(self) -> int | None:
        """`fingerprint` of the CLIP that it repeats; None if it doesn't."""
        key = "decode_head.clip" if self.stage == "distillation" else "vit"
        kernel = self.stored.get(f"{key}.conv1.weight")
        return None if kernel is None else fingerprint(kernel)

    @property
    def prefix(self) -> str:
        """The prefix of the head's keys."""
        return reclip.DECODE_HEAD if self.stage == "distillation" else ""

    @property
    def last_layer(self) -> str:
        """The name of the head's last layer."""
        return "decoder_conv2" if self.plus_plus else "proj_net.6"


def is_distilled(paths: Collection[str]) -> bool:
    """Whether arrays by our paths are of a distilled student; else of a rectified CLIP."""
    return any(path.startswith("student.") for path in paths)


def is_plus_plus(paths: Collection[str]) -> bool:
    """Whether arrays by our paths are of ReCLIP++; else of ReCLIP."""
    return any(path.endswith("head.pe_proj.bias") for path in paths)


def recognise(stored: Mapping[str, np.ndarray]) -> Published | None:
    """Determines a state dict's stage and method by its keys; None if it is not of ReCLIP."""
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


def from_published(published: Published, source: str) -> dict[str, np.ndarray]:
    """The trained arrays and the class embedding by our paths; copies of CLIP are not checked.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped key, or every layer that
        is stored under two names with different values.
    """
    layout, stored = _LAYOUTS[published.stage], published.stored
    copies = {key: name[0] for key in stored if (name := layout.copies.right(key))}
    trained = {
        key: value
        for key, value in stored.items()
        if key not in copies and not is_carried(key) and not _is_frozen(key, layout)
    }
    arrays = layout.trained.to_right(trained, _expected_shapes(published, source), source)
    different = [
        f"~ {key}: differs from {name}, of which it is a copy"
        for key, name in copies.items()
        if name in trained and not np.array_equal(stored[key], trained[name])
    ]
    if different:
        listed = "\n  ".join(sorted(different))
        raise CheckpointError(f"{source} is inconsistent; nothing was loaded:\n  {listed}")
    return arrays


def _is_frozen(key: str, layout: _Layout) -> bool:
    """True for a copy of an array of CLIP, and for what nothing uses."""
    if layout.trained.right(key) is not None:
        return False
    names = [mapped[0] for table in layout.clip if (mapped := table.right(key))]
    return key in reclip.UNUSED or any(OPENAI.right(name) is not None for name in names)


def _expected_shapes(published: Published, source: str) -> dict[str, Shape]:
    """The shape of each array by our paths, in a model of the file's sizes."""
    stored, prefix = published.stored, published.prefix

    def shape(key: str, rank: int) -> Shape:
        return required_shape(stored, key, rank, source)

    plus_plus = published.plus_plus
    classes = shape(f"{prefix}{published.last_layer}.bias", 1)[0]
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
    clip: Mapping[str, np.ndarray] | None,
    *,
    half: bool = True,
) -> dict[str, np.ndarray]:
    """The state dict that the published code's strict loader accepts, with all its copies of CLIP.

    Args:
      arrays: what was trained, by our paths.
      clip: weights by OpenAI's names, both towers.
      half: as the code writes files on a GPU, with float16 projections, one copy of which is then
        not stored; False: as on a CPU.

    Raises:
      CheckpointError: no CLIP, or one without its text tower.
    """
    layout = _LAYOUTS[stage]
    clip = {key: np.asarray(v, np.float32) for key, v in whole_clip(clip, "ReCLIP").items()}
    out = {}
    for table in layout.clip:
        for name, value in clip.items():
            mapped = table.left(name)
            if mapped and not (half and mapped[0] in reclip.FLOAT32_ONLY):
                key, transform = mapped
                is_half = half and key in ("clip.visual.proj", "clip.text_projection")
                dtype = np.float16 if is_half else np.float32
                out[key] = np.asarray(transform.inverse(value), dtype)
    # A student's text embeddings and reference are left out: the published code computes them at
    # each start.
    published = {k: v for k, v in arrays.items() if layout.trained.left(k) is not None}
    trained = layout.trained.to_left(published)
    trained |= counters(trained)
    trained |= {copy[0]: v for key, v in trained.items() if (copy := layout.copies.left(key))}
    out |= trained
    if stage == "distillation":
        embed = clip["text_projection"].shape[1]
        last = "decoder_conv" if is_plus_plus(arrays) else "conv3"
        classes = arrays[f"teacher.head.{last}.bias"].size
        for key in reclip.UNUSED:
            shape = (classes, embed, 1, 1) if key.endswith("weight") else (classes,)
            out[key] = np.zeros(shape, np.float32)
        return out
    return {f"{reclip.PREFIX}{key}": value for key, value in out.items()}
