"""ResNets v1c: key map, and loading ImageNet weights as open-mmlab publishes them.

`resnet{50,101}_v1c-*.pth` of open-mmlab hold {"state_dict": stem.*, layer{1..4}.*, fc.*}. Spec
reclip, section 15.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipseg_jax.models.resnet import DilatedResNet
from weights_convert.build import flat_arrays, install, is_carried
from weights_convert.clip import batch_norm
from weights_convert.errors import CheckpointError
from weights_convert.mapping import CONV, KeyMap, Rule
from weights_convert.names import unwrap
from weights_convert.reader import read

_STEM = {0: 0, 3: 1, 6: 2}  # convolutions in the source's sequence; norms follow each


def resnet_rules(left: str, right: str, stages: Sequence[str], norm: str) -> list[Rule]:
    """Rows between a v1c by the source's names and our `DilatedResNet`.

    `stages` are the source's names of the stages, `norm` is what it calls norm1 to norm3.
    """
    rows = []
    for theirs, ours in _STEM.items():
        stem = f"{right}stem.{ours}"
        rows.append(Rule(f"{left}stem.{theirs}.weight", f"{stem}.conv.kernel", CONV))
        rows += batch_norm(f"{left}stem.{theirs + 1}", f"{stem}.norm")
    for ours, stage in enumerate(stages):
        theirs_block, block = f"{left}{stage}.{{i}}", f"{right}layers.{ours}.{{i}}"
        for n in (1, 2, 3):
            rows.append(Rule(f"{theirs_block}.conv{n}.weight", f"{block}.conv{n}.kernel", CONV))
            rows += batch_norm(f"{theirs_block}.{norm}{n}", f"{block}.norm{n}")
        shortcut = f"{theirs_block}.downsample"
        rows.append(Rule(f"{shortcut}.0.weight", f"{block}.shortcut_conv.kernel", CONV))
        rows += batch_norm(f"{shortcut}.1", f"{block}.shortcut_norm")
    return rows


OPEN_MMLAB = KeyMap(resnet_rules("", "", [f"layer{stage}" for stage in (1, 2, 3, 4)], "bn"))


def load_resnet_v1c(path: str | Path, backbone: DilatedResNet, *, statistics: bool = False) -> None:
    """Puts open-mmlab's ImageNet weights into `backbone`; its classifier is left out.

    `statistics`: the running ones as well. ReCLIP's distillation doesn't take them (section 15.1).

    Raises:
      CheckpointError: another depth, or lists every missing, unexpected and wrongly shaped key.
      FileNotFoundError: no file.
    """
    stored = {
        key: value
        for key, value in unwrap(read(path).content).items()
        if not key.startswith("fc.") and not is_carried(key)
    }
    found = tuple(
        len({key.split(".")[1] for key in stored if key.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    if found != backbone.cfg.blocks:
        raise CheckpointError(
            f"{path} has {found} blocks in its stages, the backbone {backbone.cfg.blocks}; give "
            "the weights of the same depth"
        )
    shapes = {name: tuple(leaf.shape) for name, leaf in flat_arrays(backbone).items()}
    arrays = OPEN_MMLAB.to_right(stored, shapes, str(path))
    kept = {
        name: value
        for name, value in arrays.items()
        if statistics or not name.endswith((".mean", ".var"))
    }
    install(backbone, kept)
