"""DeepLabV2: key maps, files of trained models, and initial weights of the backbone.

Trained: deeplab-pytorch's `checkpoint_final.pth` and its released files, a state dict behind
"base."; or ours, a safetensors file by our paths with a record. Initial: the same names without
"base.", from COCO or ImageNet. DeepLab's own `.caffemodel` files serve as either. Spec deeplab,
section 9.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipseg_jax.core.modules import abstract
from clipseg_jax.models.deeplab_v2 import DeepLabV2
from clipseg_jax.models.resnet import DilatedResNetConfig
from weights_convert.clip.build import counters, flat_arrays, install, is_carried, shapes_of
from weights_convert.clip.convert import sha256
from weights_convert.clip.keys import batch_norm
from weights_convert.clip.layouts import unwrap
from weights_convert.errors import CheckpointError
from weights_convert.formats.caffe import SUFFIX as CAFFE_SUFFIX
from weights_convert.formats.caffe import read_caffe
from weights_convert.formats.converted import (
    Converted,
    check_classes,
    is_converted,
    load_converted,
    save_converted,
    told_classes,
)
from weights_convert.formats.reader import read
from weights_convert.formats.torch_writer import write_torch
from weights_convert.mapping import CONV, KeyMap, Rule, Transform

FORMAT = "clipseg_jax DeepLabV2 1"
PREFIX = "base."  # of trained files: the network within its multi-scale wrapper
_STEM = "layer1.conv1"
_UNITS = {"reduce": "1", "conv3x3": "2", "increase": "3"}  # of a block; our number
# The published network sees BGR, ours RGB.
_CONV_BGR = Transform(lambda x: CONV.forward(x[:, ::-1]), lambda x: CONV.inverse(x)[:, ::-1])


@functools.cache
def key_map(blocks: tuple[int, ...], prefix: str) -> KeyMap:
    """Rows between the published names behind `prefix` and our `DeepLabV2` of these blocks."""
    stem = f"{prefix}{_STEM}"
    rows = [Rule(f"{stem}.conv.weight", "backbone.stem.0.conv.kernel", _CONV_BGR)]
    rows += batch_norm(f"{stem}.bn", "backbone.stem.0.norm")
    for stage, count in enumerate(blocks):
        for i in range(count):
            left = f"{prefix}layer{stage + 2}.block{i + 1}"
            right = f"backbone.layers.{stage}.{i}"
            for unit, n in _UNITS.items():
                rows.append(Rule(f"{left}.{unit}.conv.weight", f"{right}.conv{n}.kernel", CONV))
                rows += batch_norm(f"{left}.{unit}.bn", f"{right}.norm{n}")
        left = f"{prefix}layer{stage + 2}.block1.shortcut"
        right = f"backbone.layers.{stage}.0.shortcut"
        rows.append(Rule(f"{left}.conv.weight", f"{right}_conv.kernel", CONV))
        rows += batch_norm(f"{left}.bn", f"{right}_norm")
    rows.append(Rule(f"{prefix}aspp.c{{i}}.weight", "aspp.{i}.kernel", CONV))
    rows.append(Rule(f"{prefix}aspp.c{{i}}.bias", "aspp.{i}.bias"))
    return KeyMap(rows)


def from_published(stored: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """A trained network's state dict by our paths; its first convolution turned to RGB.

    Raises:
      CheckpointError: its sizes cannot be told, or lists every missing, unexpected and wrongly
        shaped key.
    """
    weights = {key: value for key, value in stored.items() if not is_carried(key)}
    prefix, blocks, width = _sizes(weights, source)
    bias = weights.get(f"{prefix}aspp.c0.bias")
    if bias is None:
        raise CheckpointError(
            f"{source}: {prefix}aspp.c0.bias is missing, so it is no trained network; initial "
            "weights are for the backbone of one that is to be trained"
        )
    wanted = _shapes(bias.size, blocks, width)
    return key_map(blocks, prefix).to_right(weights, wanted, source)


def to_published(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict that deeplab-pytorch's strict loader takes, of arrays by our paths."""
    table = key_map(_blocks_by_our_paths(arrays), PREFIX)
    out = {key: np.asarray(value) for key, value in table.to_left(arrays).items()}
    return out | counters(out)


def stored_arrays(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """What a file of PyTorch's or Caffe's holds, by deeplab-pytorch's names, and its kind.

    Raises:
      CheckpointError: no checkpoint. FileNotFoundError: no file.
    """
    if path.suffix == CAFFE_SUFFIX:
        return read_caffe(path), "caffemodel"
    checkpoint = read(path)
    return unwrap(checkpoint.content), checkpoint.kind


def recognised(stored: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is of a trained DeepLabV2 of deeplab-pytorch, by its keys."""
    return f"{PREFIX}aspp.c0.weight" in stored


def load_deeplab(path: str | Path, *, classes: Sequence[str] | None = None) -> Converted:
    """Arrays by our paths and a record, of a trained file of ours or of deeplab-pytorch.

    Args:
      classes: what it is to tell apart; checked against the file's number of classes, and against
        its names where it has them.

    Raises:
      CheckpointError: neither, damaged, of other classes, or lists every missing, unexpected and
        wrongly shaped key. FileNotFoundError: no file.
    """
    path = Path(path)
    if is_converted(path):
        loaded = load_converted(path, FORMAT)
    else:
        stored, kind = stored_arrays(path)
        arrays = from_published(stored, str(path))
        told = {"source": path.name, "sha256": sha256(path), "kind": kind}
        loaded = Converted(arrays, _record(arrays, None) | told)
    check_classes(path, loaded.record, classes)
    return loaded


def save_deeplab(path: str | Path, model: DeepLabV2, classes: Sequence[str], **more: Any) -> Path:
    """Writes a model and a record to one file; `more` is kept in it (JSON). Atomic, checksummed.

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    arrays = {key: np.asarray(value) for key, value in flat_arrays(model).items()}
    return save_converted(path, Converted(arrays, _record(arrays, list(classes)) | more))


def export_deeplab(trained: Converted, path: str | Path) -> Path:
    """Writes a trained network as deeplab-pytorch reads it.

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    return write_torch(path, to_published(trained.arrays))


def deeplab_from(trained: Converted, *, dtype: str = "float32") -> DeepLabV2:
    """The model of what `load_deeplab` gives; `dtype` is that of its convolutions."""
    arrays = trained.arrays
    width = arrays["backbone.stem.0.norm.scale"].size
    cfg = _config(_blocks_by_our_paths(arrays), width, dtype)
    classes = arrays["aspp.0.bias"].size
    model = abstract(lambda rngs: DeepLabV2(classes, cfg, rngs=rngs))
    install(model, arrays, complete=("",))
    return model


class Initial(NamedTuple):
    """What `load_initial` did."""

    loaded: tuple[str, ...]  # our paths
    skipped: tuple[str, ...]  # keys of the file that nothing has use for
    fresh: tuple[str, ...]  # our paths that keep what they were


def load_initial(path: str | Path, model: DeepLabV2) -> Initial:
    """Puts initial weights (COCO, ImageNet) into the backbone; the classifiers stay as they are.

    The file may hold more, such as another classifier; all of the backbone must be in it.

    Raises:
      CheckpointError: another depth, or lists every missing and wrongly shaped key of the backbone.
      FileNotFoundError: no file.
    """
    content, _ = stored_arrays(Path(path))
    stored = {key: value for key, value in content.items() if not is_carried(key)}
    prefix, blocks, _ = _sizes(stored, str(path))
    if blocks != model.backbone.cfg.blocks:
        raise CheckpointError(
            f"{path} has {blocks} blocks in its stages, the backbone {model.backbone.cfg.blocks}; "
            "give the weights of the same depth"
        )
    table = key_map(blocks, prefix)
    wanted = {p: shape for p, shape in shapes_of(model).items() if p.startswith("backbone.")}
    of_backbone = {
        key: value
        for key, value in stored.items()
        if (mapped := table.right(key)) is not None and mapped[0] in wanted
    }
    install(model, table.to_right(of_backbone, wanted, str(path)))
    fresh = tuple(path for path in flat_arrays(model) if path not in wanted)
    return Initial(tuple(wanted), tuple(key for key in stored if key not in of_backbone), fresh)


def summary(record: Mapping[str, Any]) -> str:
    """A record in one line."""
    depth = 2 + 3 * sum(record["blocks"])
    return f"DeepLabV2, ResNet-{depth}, {told_classes(record)}"


def _record(arrays: Mapping[str, np.ndarray], classes: list[str] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "blocks": list(_blocks_by_our_paths(arrays)),
        "classes": classes,
        "class_count": arrays["aspp.0.bias"].size,
    }


def _sizes(stored: Mapping[str, np.ndarray], source: str) -> tuple[str, tuple[int, ...], int]:
    """What stands before the published names, blocks of the stages, and width."""
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
    found = [path.split(".")[2:4] for path in arrays if path.startswith("backbone.layers.")]
    stages = range(1 + max(int(stage) for stage, _ in found))
    return tuple(len({block for own, block in found if own == str(s)}) for s in stages)


def _config(blocks: tuple[int, ...], width: int, dtype: str = "float32") -> DilatedResNetConfig:
    return DilatedResNetConfig(blocks=blocks, width=width, variant="caffe", dtype=dtype)


@functools.lru_cache(maxsize=4)
def _shapes(classes: int, blocks: tuple[int, ...], width: int) -> dict[str, tuple[int, ...]]:
    cfg = _config(blocks, width)
    return shapes_of(abstract(lambda rngs: DeepLabV2(classes, cfg, rngs=rngs)))
