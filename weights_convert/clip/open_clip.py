"""OpenCLIP's open_clip_config.json: what it says of a CLIP, and what of it is not supported.

Sources: spec clip, section 10.5; `open_clip.CLIPVisionCfg` and `open_clip.CLIPTextCfg`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from clipseg_jax.core.safe_pickle import shown
from clipseg_jax.models.clip import CLIPConfig, ViTConfig
from weights_convert.clip.json_files import fraction, section, whole_number

_EPSILON = 1e-5
_HEAD_WIDTH, _TEXT_HEADS, _MLP_RATIO = 64, 8, 4.0
_OFF = (None, False)
# What open_clip's models may have beyond CLIP, and the values with which they are CLIP. A key that
# is in none of these lists is refused: it is of a later version, and may change the result.
_SAME: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision_cfg": {
        "timm_model_name": (None, ""),
        "attentional_pool": _OFF,
        "pool_type": (None, "tok"),
        "no_ln_pre": _OFF,
        "pos_embed_type": (None, "learnable", "sin_cos_2d"),  # both are stored
    },
    "text_cfg": {
        "hf_model_name": (None, ""),
        "hf_tokenizer_name": (None, ""),
        "pool_type": (None, "argmax"),
        "no_causal_mask": _OFF,
        "embed_cls": _OFF,
        "proj_bias": _OFF,
        "proj_type": (None, "linear"),
        "tokenizer_mode": (None,),
        "tokenizer_kwargs": (None, {}),
    },
    "model_cfg": {"multimodal_cfg": (None, {})},
}
_SAME_IN_BOTH: dict[str, tuple[Any, ...]] = {
    "ls_init_value": (None,),
    "final_ln_after_pool": _OFF,  # the same for one token; refused as it comes with other pools
    "block_type": (None, "default"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn",
         "scale_fc"),
        _OFF,
    ),
}  # fmt: skip
_READ = {
    "vision_cfg": ("width", "layers", "head_width", "mlp_ratio", "patch_size", "image_size"),
    "text_cfg": ("width", "layers", "heads", "mlp_ratio", "context_length", "vocab_size"),
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"),
}
_READ_IN_BOTH = ("act_kwargs", "norm_kwargs")
# Of training, of other towers, or of what is returned beside the features.
_WITHOUT_EFFECT = {
    "vision_cfg": (
        "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads",
        "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
        "timm_drop_path",
    ),
    "text_cfg": (
        "output_tokens", "pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type",
        "hf_pooler_type",
    ),
    "model_cfg": (
        "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "cast_dtype",
        "output_dict",
    ),
}  # fmt: skip


def open_clip_config(config: CLIPConfig, content: dict[str, Any]) -> CLIPConfig:
    """`config`, by the weights' shapes, with what an open_clip_config.json says.

    Raises:
      ValueError: it is of other sizes than the weights, or has what is not supported; the message
        names the key and its value.
    """
    model = section(content, "model_cfg")
    if not model:
        raise ValueError("it has no model_cfg")
    vision_cfg, text_cfg = section(model, "vision_cfg"), section(model, "text_cfg")
    for name, values in (("vision_cfg", vision_cfg), ("text_cfg", text_cfg), ("model_cfg", model)):
        _check_supported(values, name)
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ValueError(f"quick_gelu is {quick!r:.60}, not true or false")
    vision, text = config.vision, config.text
    check_sizes(model, [("embed_dim", vision.embed_dim)], "model_cfg")
    check_sizes(vision_cfg, [("width", vision.width)], "vision_cfg")
    head_width = whole_number(vision_cfg, "head_width", _HEAD_WIDTH)
    if isinstance(vision, ViTConfig):
        sizes = [("layers", vision.layers), ("patch_size", vision.patch_px)]
        check_sizes(vision_cfg, sizes, "vision_cfg")
        vision = dataclasses.replace(
            _with_kwargs(vision, vision_cfg, quick, "vision_cfg"), heads=vision.width // head_width
        )
    else:
        vision = dataclasses.replace(vision, heads=32 * vision.width // head_width)
    if text is not None:
        sizes = [
            ("width", text.width),
            ("layers", text.layers),
            ("context_length", text.context_length),
            ("vocab_size", text.vocabulary),
        ]
        check_sizes(text_cfg, sizes, "text_cfg")
        text = dataclasses.replace(
            _with_kwargs(text, text_cfg, quick, "text_cfg"),
            heads=whole_number(text_cfg, "heads", _TEXT_HEADS),
        )
    return CLIPConfig(vision, text)


def _check_supported(values: dict[str, Any], name: str) -> None:
    same = _SAME[name] | (_SAME_IN_BOTH if name != "model_cfg" else {})
    known = {*_READ[name], *_WITHOUT_EFFECT[name], *(_READ_IN_BOTH if name != "model_cfg" else ())}
    for key, value in values.items():
        if key not in known and value not in same.get(key, (None,)):
            raise ValueError(f"{name}.{shown(key)} is {value!r:.60}, which is not supported")


def _with_kwargs(tower: Any, values: dict[str, Any], quick: bool, name: str) -> Any:
    """A tower with the activation and the epsilon of its section; its MLP ratio is checked."""
    activation = section(values, "act_kwargs")
    if activation not in ({}, {"approximate": "none"}, {"approximate": "tanh"}) or (
        quick and activation
    ):
        raise ValueError(f"{name}.act_kwargs is {activation!r:.60}, which is not supported")
    norm = section(values, "norm_kwargs")
    if norm.keys() - {"eps"}:
        raise ValueError(f"{name}.norm_kwargs is {norm!r:.60}; supported is eps")
    ratio = values.get("mlp_ratio", _MLP_RATIO)
    hidden = tower.mlp_width or 4 * tower.width
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise ValueError(f"{name}.mlp_ratio is {ratio!r:.60}, not a number")
    if int(tower.width * ratio) != hidden:
        raise ValueError(f"{name}.mlp_ratio is {ratio}, the weights have {hidden} / {tower.width}")
    by_error_function = "gelu_tanh" if activation.get("approximate") == "tanh" else "gelu"
    return dataclasses.replace(
        tower,
        activation="quick_gelu" if quick else by_error_function,
        norm_eps=fraction(norm, "eps", _EPSILON),
    )


def check_sizes(values: dict[str, Any], sizes: Iterable[tuple[str, int]], name: str) -> None:
    """Checks that what a section says of sizes is what the weights have.

    Raises:
      ValueError: it is not; the message names the section, the key and both values.
    """
    for key, size in sizes:
        if (said := values.get(key)) not in (None, size):
            raise ValueError(f"{name}.{key} is {said!r:.60}, the weights have {size}")


def image_numbers(values: dict[str, Any], key: str, least: float) -> tuple[float, ...] | None:
    """Three numbers `values[key]`, one for each channel of pixels from 0 to 1; None: absent.

    Raises:
      ValueError: something else, or a number below `least`.
    """
    numbers = values.get(key)
    if numbers is None:
        return None
    if not isinstance(numbers, list) or len(numbers) != 3:
        raise ValueError(f"{key} is {numbers!r:.60}, not three numbers")
    if not all(type(number) in (int, float) and least <= number <= 1 for number in numbers):
        raise ValueError(f"{key} is {numbers!r:.60}, not three numbers from {least:g} to 1")
    return tuple(float(number) for number in numbers)
