"""The config.json of Hugging Face's DINOs.

They are `facebook/dino-*`, `facebook/dinov2-*` and `facebook/dinov2-with-registers-*`. Sources:
`ViTConfig`, `Dinov2Config` and `Dinov2WithRegistersConfig` of transformers 5.23.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from clipseg_jax.models.dino import DINOConfig
from weights_convert.clip.json_files import fraction, read_json, whole_number
from weights_convert.errors import CheckpointError

CONFIG = "config.json"
# transformers omits its defaults in config.json, which differ between the kinds of models.
_EPSILON = {"vit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}
_HEADS = 12


class ConfigJSON(NamedTuple):
    """What a config.json says of a DINO."""

    path: Path
    heads: int
    norm_eps: float
    content: dict[str, Any]


def read_config_json(path: Path) -> ConfigJSON | None:
    """The config.json of a DINO; None: there is none, or one of another program (no `model_type`).

    Raises:
      CheckpointError: it is damaged, of another model, or has what is not supported.
    """
    content = read_json(path) if path.exists() else {}
    kind = content.get("model_type")
    if kind is None:
        return None
    if kind not in _EPSILON:
        raise CheckpointError(
            f"{path} says that this is a model of type {kind!r:.60}; DINO's are "
            f"{', '.join(_EPSILON)}"
        )
    try:
        if (activation := content.get("hidden_act")) not in (None, "gelu"):
            raise ValueError(f"the activation {activation!r:.60}; only gelu is supported")
        heads = whole_number(content, "num_attention_heads", _HEADS)
        return ConfigJSON(path, heads, fraction(content, "layer_norm_eps", _EPSILON[kind]), content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not the config of a DINO: {error}") from error


def check_sizes(config: DINOConfig, beside: ConfigJSON) -> None:
    """Compares the sizes of weights with those of the config.json beside them.

    Raises:
      CheckpointError: they differ.
    """
    for key, size in _sizes(config):
        if (said := beside.content.get(key)) not in (None, size):
            raise CheckpointError(
                f"{beside.path} is not the config of these weights: {key} is {said!r:.60}, the "
                f"weights have {size}"
            )


def config_json(config: DINOConfig) -> dict[str, Any]:
    """The content of config.json for a tower."""
    content = dict(_sizes(config)) | {
        "num_attention_heads": config.heads,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        "num_channels": 3,
        "qkv_bias": True,
    }
    if not config.layer_scale:
        own = {"model_type": "vit", "architectures": ["ViTModel"]}
        return own | content | {"intermediate_size": 4 * config.width}
    own = {"model_type": "dinov2", "architectures": ["Dinov2Model"]}
    if config.registers:
        own = {
            "model_type": "dinov2_with_registers",
            "architectures": ["Dinov2WithRegistersModel"],
        }
    return own | content | {"mlp_ratio": 4, "use_swiglu_ffn": config.mlp == "swiglu"}


def _sizes(config: DINOConfig) -> list[tuple[str, int]]:
    registers = [("num_register_tokens", config.registers)] if config.registers else []
    return [
        ("hidden_size", config.width),
        ("num_hidden_layers", config.layers),
        ("image_size", config.image_px),
        ("patch_size", config.patch_px),
        *registers,
    ]
