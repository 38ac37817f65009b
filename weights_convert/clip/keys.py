"""Key maps of CLIP. Left: as published; right: our paths, or OpenAI's names.

Spec clip, section 10.
"""

from __future__ import annotations

from weights_convert.mapping import (
    CONV,
    HEAD_AXES,
    LINEAR,
    ONE_AXIS,
    PATCHES,
    SAME,
    KeyMap,
    Rule,
    Transform,
    layer_norm,
    linear,
)


def block(left: str, right: str) -> list[Rule]:
    """Rules for the blocks of a transformer as OpenAI's code names them."""
    left, right = f"{left}.resblocks.{{i}}", f"{right}.resblocks.{{i}}"
    rules = [
        Rule(f"{left}.attn.in_proj_weight", f"{right}.attn.in_proj.kernel", LINEAR),
        Rule(f"{left}.attn.in_proj_bias", f"{right}.attn.in_proj.bias"),
    ]
    for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
        rules += linear(f"{left}.{name}", f"{right}.{name}")
    for name in ("ln_1", "ln_2"):
        rules += layer_norm(f"{left}.{name}", f"{right}.{name}")
    return rules


def batch_norm(left: str, right: str) -> list[Rule]:
    """Rules for a batch norm and its running statistics."""
    return [
        *layer_norm(left, right),
        Rule(f"{left}.running_mean", f"{right}.mean"),
        Rule(f"{left}.running_var", f"{right}.var"),
    ]


# SigLIP was not released by names like these; they let it go the way of all CLIPs.
_SIGLIP_ROWS = [
    Rule("visual.conv1.bias", "visual.conv1.bias"),
    Rule("visual.head.probe", "visual.head.probe"),
    Rule("visual.head.attn.in_proj_weight", "visual.head.attn.in_proj.kernel", LINEAR),
    Rule("visual.head.attn.in_proj_bias", "visual.head.attn.in_proj.bias"),
    *linear("visual.head.attn.out_proj", "visual.head.attn.out_proj"),
    *layer_norm("visual.head.ln", "visual.head.ln"),
    *linear("visual.head.mlp.{p:c_fc|c_proj}", "visual.head.mlp.{p:c_fc|c_proj}"),
    *linear("text_projection", "text.text_projection"),
    Rule("logit_bias", "logit_bias"),
]

OPENAI = KeyMap(
    [
        # Both image towers: a ViT has conv1 only, a ResNet conv1 to conv3.
        Rule("visual.{c:conv[0-9]}.weight", "visual.{c:conv[0-9]}.kernel", CONV),
        # ViT
        Rule("visual.class_embedding", "visual.class_embedding"),
        Rule("visual.positional_embedding", "visual.positional_embedding"),
        Rule("visual.proj", "visual.proj"),
        *layer_norm("visual.ln_pre", "visual.ln_pre"),
        *layer_norm("visual.ln_post", "visual.ln_post"),
        *block("visual.transformer", "visual.transformer"),
        # ResNet
        *batch_norm("visual.{b:bn[0-9]}", "visual.{b:bn[0-9]}"),
        Rule(
            "visual.{l:layer[0-9]}.{i}.{c:conv[0-9]}.weight",
            "visual.{l:layer[0-9]}.{i}.{c:conv[0-9]}.kernel",
            CONV,
        ),
        *batch_norm(
            "visual.{l:layer[0-9]}.{i}.{b:bn[0-9]}", "visual.{l:layer[0-9]}.{i}.{b:bn[0-9]}"
        ),
        Rule(
            "visual.{l:layer[0-9]}.{i}.downsample.0.weight",
            "visual.{l:layer[0-9]}.{i}.downsample.0.kernel",
            CONV,
        ),
        *batch_norm(
            "visual.{l:layer[0-9]}.{i}.downsample.1", "visual.{l:layer[0-9]}.{i}.downsample.1"
        ),
        Rule("visual.attnpool.positional_embedding", "visual.attnpool.positional_embedding"),
        Rule(
            "visual.attnpool.{p:[qkvc]_proj}.weight",
            "visual.attnpool.{p:[qkvc]_proj}.kernel",
            LINEAR,
        ),
        Rule("visual.attnpool.{p:[qkvc]_proj}.bias", "visual.attnpool.{p:[qkvc]_proj}.bias"),
        # Text
        Rule("logit_scale", "logit_scale"),
        Rule("token_embedding.weight", "text.token_embedding.embedding"),
        Rule("positional_embedding", "text.positional_embedding"),
        Rule("text_projection", "text.text_projection"),
        *layer_norm("ln_final", "text.ln_final"),
        *block("transformer", "text.transformer"),
        *_SIGLIP_ROWS,
    ]
)

_HF_TEXT, _HF_VISION = "text_model", "vision_model"


def _hf_layer(tower: str, ours: str) -> list[Rule]:
    left, right = f"{tower}.encoder.layers.{{i}}", f"{ours}.resblocks.{{i}}"
    rules = []
    # OpenAI packs query, key and value into one matrix; "#n" is part n, joined by `layouts`.
    for n, part in enumerate("qkv"):
        for leaf in ("weight", "bias"):
            rules.append(
                Rule(f"{left}.self_attn.{part}_proj.{leaf}", f"{right}.attn.in_proj_{leaf}#{n}")
            )
    names = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for theirs, name in names.items():
        rules.append(
            Rule(f"{left}.{theirs}.{{leaf:weight|bias}}", f"{right}.{name}.{{leaf:weight|bias}}")
        )
    return rules


# Hugging Face -> OpenAI.
HUGGINGFACE = KeyMap(
    [
        Rule("logit_scale", "logit_scale"),
        Rule("text_projection.weight", "text_projection", LINEAR),
        Rule("visual_projection.weight", "visual.proj", LINEAR),
        Rule(f"{_HF_TEXT}.embeddings.token_embedding.weight", "token_embedding.weight"),
        Rule(f"{_HF_TEXT}.embeddings.position_embedding.weight", "positional_embedding"),
        Rule(f"{_HF_TEXT}.final_layer_norm.{{leaf:weight|bias}}", "ln_final.{leaf:weight|bias}"),
        Rule(f"{_HF_VISION}.embeddings.class_embedding", "visual.class_embedding"),
        Rule(f"{_HF_VISION}.embeddings.patch_embedding.weight", "visual.conv1.weight"),
        Rule(f"{_HF_VISION}.embeddings.position_embedding.weight", "visual.positional_embedding"),
        Rule(f"{_HF_VISION}.pre_layrnorm.{{leaf:weight|bias}}", "visual.ln_pre.{leaf:weight|bias}"),
        Rule(
            f"{_HF_VISION}.post_layernorm.{{leaf:weight|bias}}",
            "visual.ln_post.{leaf:weight|bias}",
        ),
        *_hf_layer(_HF_TEXT, "transformer"),
        *_hf_layer(_HF_VISION, "visual.transformer"),
    ]
)

_HEAD = f"{_HF_VISION}.head"
_LEAF = "{leaf:weight|bias}"

_PATCHES = f"{_HF_VISION}.embeddings.patch_embedding"


def _siglip(patches: Transform) -> KeyMap:
    """Hugging Face's SigLIP -> names in OpenAI's manner."""
    return KeyMap(
        [
            Rule("logit_scale", "logit_scale", ONE_AXIS),
            Rule("logit_bias", "logit_bias", ONE_AXIS),
            Rule(f"{_HF_TEXT}.embeddings.token_embedding.weight", "token_embedding.weight"),
            Rule(f"{_HF_TEXT}.embeddings.position_embedding.weight", "positional_embedding"),
            Rule(f"{_HF_TEXT}.final_layer_norm.{_LEAF}", f"ln_final.{_LEAF}"),
            Rule(f"{_HF_TEXT}.head.{_LEAF}", f"text_projection.{_LEAF}"),
            Rule(f"{_PATCHES}.weight", "visual.conv1.weight", patches),
            Rule(f"{_PATCHES}.bias", "visual.conv1.bias"),
            Rule(
                f"{_HF_VISION}.embeddings.position_embedding.weight", "visual.positional_embedding"
            ),
            Rule(f"{_HF_VISION}.post_layernorm.{_LEAF}", f"visual.ln_post.{_LEAF}"),
            Rule(f"{_HEAD}.probe", "visual.head.probe", HEAD_AXES),
            Rule(f"{_HEAD}.attention.in_proj_{_LEAF}", f"visual.head.attn.in_proj_{_LEAF}"),
            Rule(f"{_HEAD}.attention.out_proj.{_LEAF}", f"visual.head.attn.out_proj.{_LEAF}"),
            Rule(f"{_HEAD}.layernorm.{_LEAF}", f"visual.head.ln.{_LEAF}"),
            Rule(f"{_HEAD}.mlp.fc1.{_LEAF}", f"visual.head.mlp.c_fc.{_LEAF}"),
            Rule(f"{_HEAD}.mlp.fc2.{_LEAF}", f"visual.head.mlp.c_proj.{_LEAF}"),
            *_hf_layer(_HF_TEXT, "transformer"),
            *_hf_layer(_HF_VISION, "visual.transformer"),
        ]
    )


SIGLIP = _siglip(SAME)
NAFLEX = _siglip(PATCHES)  # of SigLIP 2

# Released files by the first 16 digits of their sha256.
RELEASED = {
    "afeb0e10f9e5a86d": ("RN50", "RN50.pt"),
    "8fa8567bab74a42d": ("RN101", "RN101.pt"),
    "7e526bd135e493ce": ("RN50x4", "RN50x4.pt"),
    "52378b407f34354e": ("RN50x16", "RN50x16.pt"),
    "be1cfb55d75a9666": ("RN50x64", "RN50x64.pt"),
    "40d365715913c9da": ("ViT-B/32", "ViT-B-32.pt"),
    "5806e77cd80f8b59": ("ViT-B/16", "ViT-B-16.pt"),
    "b8cca3fd41ae0c99": ("ViT-L/14", "ViT-L-14.pt"),
    "3035c92b35095992": ("ViT-L/14@336px", "ViT-L-14-336px.pt"),
}
