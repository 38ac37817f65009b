"""Key maps of MaskCLIP's files (mmsegmentation names) to OpenAI's. Spec maskclip, section 2.

`{M}_clip_weights.pth` holds {"clip": tower, "proj" or "q_proj".."c_proj": projections}; a MaskCLIP
state dict holds "backbone." + tower and "decode_head." + projections as 1x1 convolutions.
"""

from __future__ import annotations

from weights_convert.mapping import (
    CONV_1X1,
    CONV_1X1_LINEAR,
    HEAD_AXES,
    HEAD_AXIS,
    LINEAR,
    SAME,
    KeyMap,
    Rule,
    Transform,
)

_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
BACKBONE_PREFIX = "backbone."

_LEAF = "{leaf:weight|bias}"
_ANY = "{leaf:[a-z_]+}"


def _vit(prefix: str) -> list[Rule]:
    left, right = f"{prefix}layers.{{i}}", "visual.transformer.resblocks.{i}"
    return [
        Rule(f"{prefix}cls_token", "visual.class_embedding", HEAD_AXES),
        Rule(f"{prefix}pos_embed", "visual.positional_embedding", HEAD_AXIS),
        Rule(f"{prefix}patch_embed.projection.weight", "visual.conv1.weight"),
        Rule(f"{prefix}ln0.{_LEAF}", f"visual.ln_pre.{_LEAF}"),
        Rule(f"{prefix}ln1.{_LEAF}", f"visual.ln_post.{_LEAF}"),
        Rule(f"{left}.ln1.{_LEAF}", f"{right}.ln_1.{_LEAF}"),
        Rule(f"{left}.ln2.{_LEAF}", f"{right}.ln_2.{_LEAF}"),
        Rule(f"{left}.attn.attn.in_proj_{_LEAF}", f"{right}.attn.in_proj_{_LEAF}"),
        Rule(f"{left}.attn.attn.out_proj.{_LEAF}", f"{right}.attn.out_proj.{_LEAF}"),
        Rule(f"{left}.ffn.layers.0.0.{_LEAF}", f"{right}.mlp.c_fc.{_LEAF}"),
        Rule(f"{left}.ffn.layers.1.{_LEAF}", f"{right}.mlp.c_proj.{_LEAF}"),
    ]


def _resnet(prefix: str) -> list[Rule]:
    rules = [Rule(f"{prefix}stem.{n}.{_ANY}", f"visual.{name}.{_ANY}") for n, name in _STEM.items()]
    block = "layer{l}.{i}"
    rules.append(
        Rule(
            f"{prefix}{block}.{{m:conv[0-9]|bn[0-9]}}.{_ANY}",
            f"visual.{block}.{{m:conv[0-9]|bn[0-9]}}.{_ANY}",
        )
    )
    # One higher than OpenAI's: the average pool is a module of its own there.
    for theirs, ours in ((1, 0), (2, 1)):
        rules.append(
            Rule(
                f"{prefix}{block}.downsample.{theirs}.{_ANY}",
                f"visual.{block}.downsample.{ours}.{_ANY}",
            )
        )
    return rules


def _projections(prefix: str, linear: Transform, matrix: Transform) -> list[Rule]:
    pool = "visual.attnpool.{p:[qkvc]_proj}"
    return [
        Rule(f"{prefix}proj.weight", "visual.proj", linear),
        Rule(f"{prefix}{{p:[qkvc]_proj}}.weight", f"{pool}.weight", matrix),
        Rule(f"{prefix}{{p:[qkvc]_proj}}.bias", f"{pool}.bias"),
    ]


_PARTS = _projections("", LINEAR, SAME)
_PARTS_1X1 = _projections("decode_head.", CONV_1X1_LINEAR, CONV_1X1)

# One key map per tower: MaskCLIP names the conv1 of each differently.
VIT_WEIGHTS = KeyMap([*_vit("clip."), *_PARTS])
RESNET_WEIGHTS = KeyMap([*_resnet("clip."), *_PARTS])
VIT_STATE_DICT = KeyMap([*_vit(BACKBONE_PREFIX), *_PARTS_1X1])
RESNET_STATE_DICT = KeyMap([*_resnet(BACKBONE_PREFIX), *_PARTS_1X1])
