"""Directories of Hugging Face and open_clip: their weights file, and the JSON files beside it.

Sources: spec clip, sections 10.4 and 10.5; the defaults of `transformers.CLIPConfig`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipseg_jax.models.clip import CLIPConfig, TextConfig, ViTConfig
from weights_convert.errors import CheckpointError

_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_HF_CONFIG, _OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
# Read with the weights; a cached conversion is outdated once they change.
SIDE_FILES = (_HF_CONFIG, _OPEN_CLIP_CONFIG, "vocab.json", "merges.txt")
# transformers omits its defaults in config.json: those of ViT-B/32.
_HF_DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_HF_HEADS = {"vision_config": 12, "text_config": 8}
_ACTIVATIONS = ("quick_gelu", "gelu")


def weights_file(path: Path) -> Path:
    """The file that holds the weights: `path` itself, or one in the directory `path`.

    Raises:
      FileNotFoundError: it does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; give a file or a Hugging Face directory")
    if not path.is_dir():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path} holds no weights: it has none of {', '.join(_WEIGHTS)}")


def with_side_files(config: CLIPConfig, layout: str, weights_path: Path) -> CLIPConfig:
    """`config` with the heads, activation and norm epsilon of a JSON file beside the weights.

    For the layout "huggingface" that is config.json, for OpenAI's names open_clip_config.json.

    Raises:
      CheckpointError: the JSON file is damaged, or has an unsupported activation.
    """
    names = {"huggingface": _HF_CONFIG, "openai": _OPEN_CLIP_CONFIG, "open_clip": _OPEN_CLIP_CONFIG}
    path = weights_path.parent / names.get(layout, "")
    if not path.is_file():
        return config
    try:
        content = json.loads(path.read_text("utf-8"))
        updated = (_huggingface if layout == "huggingface" else _open_clip)(config, content)
    except (ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} is not a readable CLIP config: {error!r}") from error
    for tower in (updated.vision, updated.text):
        if not isinstance(tower, (ViTConfig, TextConfig)):
            continue
        if tower.activation not in _ACTIVATIONS:
            raise CheckpointError(
                f"{path} has the activation {tower.activation!r}; supported are "
                f"{' and '.join(_ACTIVATIONS)}"
            )
        if tower.heads < 1 or tower.width % tower.heads:
            raise CheckpointError(f"{path}: {tower.heads} heads don't divide width {tower.width}")
    return updated


def _huggingface(config: CLIPConfig, content: Mapping[str, Any]) -> CLIPConfig:
    def tower(sizes: Any, section: str) -> Any:
        values = {"num_attention_heads": _HF_HEADS[section], **_HF_DEFAULTS, **content[section]}
        return dataclasses.replace(
            sizes,
            heads=int(values["num_attention_heads"]),
            activation=values["hidden_act"],
            norm_eps=float(values["layer_norm_eps"]),
        )

    if not content.get("vision_config"):  # of another model, or a very old one
        return config
    text = tower(config.text, "text_config") if config.text and content.get("text_config") else None
    return CLIPConfig(tower(config.vision, "vision_config"), text or config.text)


def _open_clip(config: CLIPConfig, content: Mapping[str, Any]) -> CLIPConfig:
    model = content["model_cfg"]
    config = config.replace(activation="quick_gelu" if model.get("quick_gelu") else "gelu")
    vision, text = config.vision, config.text
    if isinstance(vision, ViTConfig):
        head = int(model.get("vision_cfg", {}).get("head_width", 64))
        vision = dataclasses.replace(vision, heads=vision.width // head)
    heads = model.get("text_cfg", {}).get("heads")
    if text is not None and heads:
        text = dataclasses.replace(text, heads=int(heads))
    return CLIPConfig(vision, text)
