"""Key map of CLIP-RC. Left: published checkpoints; right: our paths. Spec clip_rc, section 13."""

from __future__ import annotations

from weights_convert.clip.keys import OPENAI
from weights_convert.mapping import CONV, HEAD_AXIS, KeyMap, Rule, layer_norm, linear

_HEAD, _RECOVERY = "decode_head", "decode_head.recovery_decoder"


def _layer(left: str, right: str) -> list[Rule]:
    attention, mlp, norm = "multihead_attn.{p:q|k|v|proj}", "linear{n:1|2}", "norm{n:2|3}"
    return [
        *linear(f"{left}.{attention}", f"{right}.{attention}"),
        *linear(f"{left}.{mlp}", f"{right}.{mlp}"),
        *layer_norm(f"{left}.{norm}", f"{right}.{norm}"),
    ]


# CLIP's image tower, under other names than OpenAI's.
_TOWER = [
    Rule(rule.left.replace("visual.", "backbone.", 1), f"encoder.{rule.right}", rule.transform)
    for rule in OPENAI.rules
    if rule.left.startswith("visual.") and not rule.left.startswith(("visual.{", "visual.attnpool"))
]
CLIP_RC = KeyMap(
    [
        *_TOWER,
        Rule("backbone.conv1.weight", "encoder.visual.conv1.kernel", CONV),
        Rule("backbone.region_level_bridge", "encoder.region_level_bridge"),
        Rule("backbone.prompt_embeddings", "encoder.prompt_embeddings", HEAD_AXIS),
        Rule("backbone.deep_prompt_embeddings", "encoder.deep_prompt_embeddings"),
        *linear("backbone.prompt_proj", "encoder.prompt_proj"),
        *layer_norm("backbone.prompt_norm", "encoder.prompt_norm"),
        *_layer(f"{_HEAD}.decoder_{{d:q|v}}.layers.{{i}}", "head.decoder_{d:q|v}.{i}"),
        *_layer(
            f"{_RECOVERY}.decouple_{{d:q|v}}.{{i}}", "head.recovery_decoder.decouple_{d:q|v}.{i}"
        ),
        *linear(
            f"{_RECOVERY}.linear_{{l:q_in|k_in|q_out|k_out}}",
            "head.recovery_decoder.linear_{l:q_in|k_in|q_out|k_out}",
        ),
        *linear(f"{_HEAD}.{{p:lateral|q}}_proj", "head.{p:lateral|q}_proj"),
    ]
)
# In checkpoints but unused: the self-attention and first norm of each decoder layer.
UNUSED = r"decode_head\..*\.(self_attn|norm1)\..*"
