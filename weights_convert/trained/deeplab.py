"""DeepLabV2: key map, files of trained networks, and initial weights of the backbone.

Trained: deeplab-pytorch's `checkpoint_final.pth` and its released files, a state dict with the
prefix "base."; or a stored file. Initial: the same names without the prefix, from COCO or ImageNet.
DeepLab's `.caffemodel` files serve as either. Spec deeplab, section 9.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.models.deeplab_v2 import DeepLabV2
from clipseg_jax.models.resnet import DilatedResNetConfig
from weights_convert.clip.build import counters, flat_arrays, install, is_carried, shapes_of
from weights_convert.clip.keys import batch_norm
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import Converted
from weights_convert.formats.record import list_of, one_of, whole
from weights_convert.mapping import CONV, KeyMap, Rule, Transform
from weights_convert.named.find import find_weights
from weights_convert.trained.files import read_published
from weights_convert.trained.format import CLASS_COUNT, Format, arrays_of, class_summary

PREFIX = "base."  # of trained files: the network within its multi-scale wrapper
_STEM = "layer1.conv1"
_WIDTH_SCALE = "backbone.layers.0.0.norm1.scale"  # as many numbers as the backbone is wide
_PUBLISHED = "caffe"  # the variant of the backbone; other variants are of our training alone
_UNITS = {"reduce": "1", "conv3x3": "2", "increase": "3"}  # of a block: our number
# The published network sees BGR, ours RGB.
_CONV_BGR = Transform(lambda x: CONV.forward(x[:, ::-1]), lambda x: CONV.inverse(x)[:, ::-1])


@functools.cache
def key_map(blocks: tuple[int, ...], prefix: str) -> KeyMap:
    """Rules between the published names after `prefix` and a `DeepLabV2` of these blocks."""
    stem = f"{prefix}{_STEM}"
    rules = [Rule(f"{stem}.conv.weight", "backbone.stem.0.conv.kernel", _CONV_BGR)]
    rules += batch_norm(f"{stem}.bn", "backbone.stem.0.norm")
    for stage, count in enumerate(blocks):
        for i in range(count):
            left = f"{prefix}layer{stage + 2}.block{i + 1}"
            right = f"backbone.layers.{stage}.{i}"
            for unit, n in _UNITS.items():
                rules.append(Rule(f"{left}.{unit}.conv.weight", f"{right}.conv{n}.kernel", CONV))
                rules += batch_norm(f"{left}.{unit}.bn", f"{right}.norm{n}")
        left = f"{prefix}layer{stage + 2}.block1.shortcut"
        right = f"backbone.layers.{stage}.0.shortcut"
        rules.append(Rule(f"{left}.conv.weight", f"{right}_conv.kernel", CONV))
        rules += batch_norm(f"{left}.bn", f"{right}_norm")
    rules.append(Rule(f"{prefix}aspp.c{{i}}.weight", "aspp.{i}.kernel", CONV))
    rules.append(Rule(f"{prefix}aspp.c{{i}}.bias", "aspp.{i}.bias"))
    return KeyMap(rules)


def from_published(stored: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """A published state dict by our paths; its first convolution is changed from BGR to RGB.

    Raises:
      CheckpointError: its sizes cannot be determined; or lists every missing, unexpected and
        wrongly shaped key.
    """
    weights = {key: value for key, value in stored.items() if not is_carried(key)}
    prefix, blocks, width = _sizes(weights, source)
    bias = weights.get(f"{prefix}aspp.c0.bias")
    if bias is None:
        raise CheckpointError(
            f"{source} is not a trained network: {prefix}aspp.c0.bias is missing; use initial "
            "weights to start a training from"
        )
    shapes = _shapes(bias.size, blocks, width)
    return key_map(blocks, prefix).to_right(weights, shapes, source)


def to_published(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict that deeplab-pytorch's strict loader accepts, of arrays by our paths."""
    table = key_map(_blocks_by_our_paths(arrays), PREFIX)
    out = {key: np.asarray(value) for key, value in table.to_left(arrays).items()}
    return out | counters(out)


def build_deeplab(trained: Converted, *, dtype: str = "float32") -> DeepLabV2:
    """The model of a trained file; `dtype` is that of its convolutions."""
    arrays = trained.arrays
    cfg = _config(
        _blocks_by_our_paths(arrays),
        arrays[_WIDTH_SCALE].size,
        trained.record.get("variant", _PUBLISHED),
        dtype,
    )
    classes = arrays["aspp.0.bias"].size
    model = abstract(lambda rngs: DeepLabV2(classes, cfg, rngs=rngs))
    install(model, arrays, complete=("",))
    return model


class LoadedBackbone(NamedTuple):
    """What `load_deeplab_backbone` did."""

    loaded: tuple[str, ...]  # our paths
    skipped: tuple[str, ...]  # keys of the file that are not of the backbone
    unchanged: tuple[str, ...]  # our paths that keep their values


def load_deeplab_backbone(path: str | Path, model: DeepLabV2) -> LoadedBackbone:
    """Puts initial weights (COCO, ImageNet) into the backbone; the classifiers stay as they are.

    The file may hold more, such as another classifier, but must hold the whole backbone. `path` may
    be an address with a checksum, see `find_weights`.

    Raises:
      CheckpointError: another depth, or lists every missing and wrongly shaped key of the backbone.
      FileNotFoundError: no file.
    """
    path = find_weights(path)
    state_dict = read_published(path).state_dict
    stored = {key: value for key, value in state_dict.items() if not is_carried(key)}
    prefix, blocks, _ = _sizes(stored, str(path))
    if blocks != model.backbone.cfg.blocks:
        raise CheckpointError(
            f"{path} has {blocks} blocks in its stages, the backbone {model.backbone.cfg.blocks}; "
            "give weights of the same depth"
        )
    table = key_map(blocks, prefix)
    shapes = {p: shape for p, shape in shapes_of(model).items() if p.startswith("backbone.")}
    of_backbone = {
        key: value
        for key, value in stored.items()
        if (mapped := table.right(key)) is not None and mapped[0] in shapes
    }
    install(model, table.to_right(of_backbone, shapes, str(path)))
    unchanged = tuple(path for path in flat_arrays(model) if path not in shapes)
    skipped = tuple(key for key in stored if key not in of_backbone)
    return LoadedBackbone(tuple(shapes), skipped, unchanged)


def _recognised(keys: Collection[str]) -> bool:
    return f"{PREFIX}aspp.c0.weight" in keys


def _from_published(
    state_dict: Mapping[str, np.ndarray], beside: Mapping[str, Any], source: str
) -> Converted:
    del beside
    return Converted(from_published(state_dict, source), {})


def _to_published(
    trained: Converted, clip: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    del clip
    variant = trained.record.get("variant", _PUBLISHED)
    if variant != _PUBLISHED:
        raise CheckpointError(
            f"a DeepLabV2 whose ResNet is of variant {variant!r} has no published form; export one "
            f"of variant {_PUBLISHED!r}"
        )
    return to_published(trained.arrays)


def _record(arrays: Mapping[str, np.ndarray], model: DeepLabV2 | None) -> dict[str, Any]:
    blocks = list(_blocks_by_our_paths(arrays))
    if _WIDTH_SCALE not in arrays:
        raise CheckpointError(f"not the arrays of a DeepLabV2: {_WIDTH_SCALE} is missing")
    record = {"blocks": blocks, "class_count": arrays["aspp.0.bias"].size}
    variant = _PUBLISHED if model is None else model.backbone.cfg.variant
    return record if variant == _PUBLISHED else record | {"variant": variant}


def _summary(record: Mapping[str, Any]) -> str:
    depth = 2 + 3 * sum(record["blocks"])
    return f"DeepLabV2, ResNet-{depth}, {class_summary(record)}"


def _sizes(stored: Mapping[str, np.ndarray], source: str) -> tuple[str, tuple[int, ...], int]:
    """The prefix of the published names, the blocks of each stage, and the width."""
    prefix = PREFIX if any(key.startswith(PREFIX) for key in stored) else ""
    blocks = tuple(
        len(
            {
                key.removeprefix(prefix).split(".")[1]
                for key in stored
                if key.startswith(f"{prefix}layer{n}.block")
            }
        )
        for n in (2, 3, 4, 5)
    )
    kernel = stored.get(f"{prefix}{_STEM}.conv.weight")
    if kernel is None or kernel.ndim != 4 or 0 in blocks:
        raise CheckpointError(
            f"{source} holds no DeepLabV2 by deeplab-pytorch's names ({_STEM}.conv.weight, "
            f"layer2.block1, ..., layer5.block1); it begins with {', '.join(list(stored)[:3])}"
        )
    return prefix, blocks, kernel.shape[0]


def _blocks_by_our_paths(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    blocks = {tuple(path.split(".")[2:4]) for path in arrays if path.startswith("backbone.layers.")}
    counts = collections.Counter(stage for stage, *_ in blocks)
    if set(counts) != set("0123"):
        raise CheckpointError(f"not the arrays of a DeepLabV2: {len(counts)} stages, expected 4")
    return tuple(counts[stage] for stage in "0123")


def _config(
    blocks: tuple[int, ...], width: int, variant: Any = _PUBLISHED, dtype: str = "float32"
) -> DilatedResNetConfig:
    return DilatedResNetConfig(blocks=blocks, width=width, variant=variant, dtype=dtype)


@functools.lru_cache(maxsize=4)
def _shapes(
    classes: int, blocks: tuple[int, ...], width: int, variant: str = _PUBLISHED
) -> dict[str, tuple[int, ...]]:
    cfg = _config(blocks, width, variant)
    return shapes_of(abstract(lambda rngs: DeepLabV2(classes, cfg, rngs=rngs)))


DEEPLAB = Format(
    name="deeplab",
    title="DeepLabV2",
    tag="clipseg_jax DeepLabV2 1",
    recognised=_recognised,
    from_published=_from_published,
    to_published=_to_published,
    stored_arrays=arrays_of,
    record=_record,
    entries=(
        {"blocks": list_of(whole(1, 1000), 4, 4), "class_count": CLASS_COUNT},
        {"variant": one_of("caffe", "v1", "v1c")},
    ),
    summary=_summary,
    shapes=lambda arrays, record: _shapes(
        record["class_count"],
        tuple(record["blocks"]),
        arrays[_WIDTH_SCALE].size,
        record.get("variant", _PUBLISHED),
    ),
    takes_clip=False,
)
