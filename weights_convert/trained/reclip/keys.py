"""Key maps of ReCLIP's files. Left: as published; right: our paths, for CLIP OpenAI's names.

Spec reclip, section 17. Files of stage 3 (rectification) hold a `ReCLIP`, each key with the prefix
"module."; those of stage 4 (distillation) a `Distillation`. Both repeat the whole CLIP, and store
some layers under two names.
"""

from __future__ import annotations

from weights_convert.clip.keys import batch_norm
from weights_convert.mapping import (
    CONV,
    CONV_1X1_LINEAR,
    HEAD_AXES,
    HEAD_AXIS,
    KeyMap,
    Rule,
)
from weights_convert.trained.imagenet import resnet_rules

PREFIX = "module."  # of stage 3, from DistributedDataParallel
DECODE_HEAD = "decode_head."  # of stage 4
_LEAF, _ANY = "{leaf:weight|bias}", "{leaf:[a-z_]+}"
_LAYERS = {1: 0, 2: 3, 3: 6}  # of ReCLIP's head: our number, index in the published nn.Sequential


def _head(left: str, right: str) -> list[Rule]:
    rules = []
    for ours, place in _LAYERS.items():
        rules += [
            Rule(f"{left}proj_net.{place}.weight", f"{right}head.conv{ours}.kernel", CONV),
            Rule(f"{left}proj_net.{place}.bias", f"{right}head.conv{ours}.bias"),
            *batch_norm(f"{left}proj_net.{place + 1}", f"{right}head.norm{ours}"),
        ]
    return [
        *rules,
        Rule(f"{left}pe_proj.weight", f"{right}head.pe_proj.kernel", CONV_1X1_LINEAR),
        Rule(f"{left}pe_proj.bias", f"{right}head.pe_proj.bias"),
        Rule(f"{left}decoder_conv2.weight", f"{right}head.decoder_conv.kernel", CONV),
        Rule(f"{left}decoder_conv2.bias", f"{right}head.decoder_conv.bias"),
        *batch_norm(f"{left}decoder_norm2", f"{right}head.decoder_norm"),
    ]


def _copies(prefix: str) -> list[Rule]:
    """From a layer's second name to its first."""
    rules = []
    for ours, place in _LAYERS.items():
        rules += [
            Rule(f"{prefix}conv{ours}.{_LEAF}", f"{prefix}proj_net.{place}.{_LEAF}"),
            Rule(f"{prefix}norm{ours}.{_ANY}", f"{prefix}proj_net.{place + 1}.{_ANY}"),
        ]
    return rules


RECTIFICATION = KeyMap(
    [
        Rule("text_encoder.prompt_token", "reference.prompt", HEAD_AXIS),
        Rule("vit.cls_token", "visual.class_embedding", HEAD_AXES),
        *_head("", ""),
    ]
)
RECTIFICATION_COPIES = KeyMap(_copies(""))

_TEXT = "(?:positional_embedding|text_projection|(?:token_embedding|ln_final|transformer)[.].+)"
_VISUAL = "(?!cls_token)[^.].*"
# Each key map is one more copy of (a part of) the CLIP.
RECTIFICATION_CLIP = (
    KeyMap([Rule("clip.{key:.+}", "{key:.+}")]),
    KeyMap([Rule(f"vit.{{key:{_VISUAL}}}", f"visual.{{key:{_VISUAL}}}")]),
    KeyMap([Rule(f"text_encoder.{{key:{_TEXT}}}", f"{{key:{_TEXT}}}")]),
    KeyMap([Rule("proj.weight", "visual.proj", CONV_1X1_LINEAR)]),
    KeyMap([Rule("logit_scale", "logit_scale")]),
)

DISTILLATION = KeyMap(
    [
        *resnet_rules(
            "backbone.",
            "student.backbone.",
            [f"res_layers.{stage}" for stage in range(4)],
            "norm",
        ),
        Rule(
            f"{DECODE_HEAD}decode_module.aspp_modules.{{i}}.conv.weight",
            "student.aspp.{i}.conv.kernel",
            CONV,
        ),
        *batch_norm(f"{DECODE_HEAD}decode_module.aspp_modules.{{i}}.norm", "student.aspp.{i}.norm"),
        Rule(f"{DECODE_HEAD}logit_scale", "logit_scale"),
        Rule(f"{DECODE_HEAD}clip.cls_token", "teacher.visual.class_embedding", HEAD_AXES),
        *_head(DECODE_HEAD, "teacher."),
    ]
)
DISTILLATION_COPIES = KeyMap(
    [
        *_copies(DECODE_HEAD),
        Rule(f"{DECODE_HEAD}pe_proj_res.{_LEAF}", f"{DECODE_HEAD}pe_proj.{_LEAF}"),
    ]
)
DISTILLATION_CLIP = (
    KeyMap([Rule(f"{DECODE_HEAD}clip.{{key:{_VISUAL}}}", f"visual.{{key:{_VISUAL}}}")]),
    KeyMap([Rule(f"{DECODE_HEAD}proj.weight", "visual.proj", CONV_1X1_LINEAR)]),
)
# A classifier that nothing uses.
UNUSED = tuple(f"{DECODE_HEAD}decode_module.conv_seg.{leaf}" for leaf in ("weight", "bias"))
# Copies of CLIP's projections that files have only if the published code ran in float32.
FLOAT32_ONLY = ("vit.proj", "text_encoder.text_projection", f"{DECODE_HEAD}clip.proj")
