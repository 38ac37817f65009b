"""ResNets trained on ImageNet: key maps; the files of open-mmlab and torchvision, both ways.

`resnet{50,101}_v1c-*.pth` of open-mmlab hold {"state_dict": stem.*, layer{1..4}.*, fc.*}, those of
torchvision conv1.*, bn1.*, layer{1..4}.*, fc.*. Spec reclip, section 15.1; spec maskclip, sections
11 and 15.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from clipseg_jax.models.resnet import DilatedResNet
from weights_convert.clip.build import counters, flat_arrays, install, is_carried, shapes_of
from weights_convert.clip.keys import batch_norm
from weights_convert.clip.layouts import read_state_dict
from weights_convert.errors import CheckpointError
from weights_convert.formats.torch_writer import write_torch
from weights_convert.mapping import CONV, KeyMap, Rule
from weights_convert.named.find import find_weights

_STEM = {0: 0, 3: 1, 6: 2}  # of the convolutions: published index, ours; a norm follows each

STAGES = tuple(f"layer{stage}" for stage in (1, 2, 3, 4))


def resnet_rules(
    left: str, right: str, stages: Sequence[str] = STAGES, norm: str = "bn"
) -> list[Rule]:
    """Rules between a published v1c and our `DilatedResNet`.

    `stages` are the published names of the stages, `norm` that of norm1 to norm3 without the digit.
    """
    rules = []
    for theirs, ours in _STEM.items():
        stem = f"{right}stem.{ours}"
        rules.append(Rule(f"{left}stem.{theirs}.weight", f"{stem}.conv.kernel", CONV))
        rules += batch_norm(f"{left}stem.{theirs + 1}", f"{stem}.norm")
    return rules + _stage_rules(left, right, stages, norm)


def resnet_v1_rules(left: str, right: str) -> list[Rule]:
    """Rules between a v1 by the names of torchvision and mmsegmentation and our `DilatedResNet`."""
    return [
        Rule(f"{left}conv1.weight", f"{right}stem.0.conv.kernel", CONV),
        *batch_norm(f"{left}bn1", f"{right}stem.0.norm"),
        *_stage_rules(left, right, STAGES, "bn"),
    ]


def _stage_rules(left: str, right: str, stages: Sequence[str], norm: str) -> list[Rule]:
    rules = []
    for ours, stage in enumerate(stages):
        theirs_block, block = f"{left}{stage}.{{i}}", f"{right}layers.{ours}.{{i}}"
        for n in (1, 2, 3):
            rules.append(Rule(f"{theirs_block}.conv{n}.weight", f"{block}.conv{n}.kernel", CONV))
            rules += batch_norm(f"{theirs_block}.{norm}{n}", f"{block}.norm{n}")
        shortcut = f"{theirs_block}.downsample"
        rules.append(Rule(f"{shortcut}.0.weight", f"{block}.shortcut_conv.kernel", CONV))
        rules += batch_norm(f"{shortcut}.1", f"{block}.shortcut_norm")
    return rules


OPEN_MMLAB = KeyMap(resnet_rules("", ""))
TORCHVISION = KeyMap(resnet_v1_rules("", ""))
_PUBLISHED = {  # variant -> publisher, the stem's first key, key map
    "v1c": ("open-mmlab", "stem.0.weight", OPEN_MMLAB),
    "v1": ("torchvision", "conv1.weight", TORCHVISION),
}


def load_imagenet(path: str | Path, backbone: DilatedResNet, *, statistics: bool = False) -> None:
    """Puts ImageNet weights into `backbone`: open-mmlab's into a v1c, torchvision's into a v1.

    The file's classifier is left out.

    Args:
      path: a file, or a name such as "resnet50_v1c", see `find_weights`.
      statistics: whether running means and variances are loaded too. ReCLIP's distillation does
        not load them (spec reclip, section 15.1), MaskCLIP+ does.

    Raises:
      CheckpointError: another variant or depth, or lists every missing, unexpected and wrongly
        shaped key. FileNotFoundError: no file.
    """
    path = find_weights(path)
    stored = {
        key: value
        for key, value in read_state_dict(path).items()
        if not key.startswith("fc.") and not is_carried(key)
    }
    variant = backbone.cfg.variant
    table = _table(variant)
    for other, (publisher, stem, _) in _PUBLISHED.items():
        if other != variant and stem in stored:
            raise CheckpointError(
                f"{path} is a ResNet of {publisher} (variant {other!r}), the backbone is of "
                f"variant {variant!r}; give weights of the same variant, or choose {other!r}"
            )
    blocks = blocks_of(stored)
    if blocks != backbone.cfg.blocks:
        raise CheckpointError(
            f"{path} has {blocks} blocks in its stages, the backbone {backbone.cfg.blocks}; give "
            "weights of the same depth"
        )
    arrays = table.to_right(stored, shapes_of(backbone), str(path))
    chosen = {
        name: value
        for name, value in arrays.items()
        if statistics or not name.endswith((".mean", ".var"))
    }
    install(backbone, chosen)


def export_imagenet(
    backbone: DilatedResNet, path: str | Path, *, dtype: DTypeLike = np.float32
) -> Path:
    """Writes a backbone under the names that `load_imagenet` reads, without a classifier.

    Args:
      dtype: of what is stored; float16 halves the file.

    Raises:
      CheckpointError: a variant without published names. OSError: the folder cannot be written.
    """
    arrays = {name: np.asarray(leaf, dtype) for name, leaf in flat_arrays(backbone).items()}
    stored = _table(backbone.cfg.variant).to_left(arrays)
    return write_torch(path, {"state_dict": stored | counters(stored)})


def blocks_of(stored: Iterable[str], prefix: str = "") -> tuple[int, ...]:
    """The number of blocks in each stage, by the keys of a state dict that start with `prefix`."""
    return tuple(
        len(
            {
                key.removeprefix(prefix).split(".")[1]
                for key in stored
                if key.startswith(f"{prefix}{stage}.")
            }
        )
        for stage in STAGES
    )


def _table(variant: str) -> KeyMap:
    if variant not in _PUBLISHED:
        raise CheckpointError(
            f"ResNets of variant {variant!r} have no published ImageNet weights; choose one of "
            f"{[*_PUBLISHED]}"
        )
    return _PUBLISHED[variant][2]
