"""Directories of Hugging Face and open_clip: their weights file, and the JSON files beside it.

Sources: spec clip, sections 10.4 and 10.5; the defaults of `transformers.CLIPConfig` and of
`open_clip.CLIPTextCfg`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipseg_jax.models.clip import CLIPConfig, TextConfig, ViTConfig
from weights_convert.clip.choices import ACTIVATIONS, check_heads
from weights_convert.clip.json_files import fraction, read_json, section, whole_number
from weights_convert.clip.shards import INDEX_FILES
from weights_convert.clip.tokenizer_files import TOKENIZER_FILES
from weights_convert.errors import CheckpointError

_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    *INDEX_FILES,
)
_HF_CONFIG, _OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
_CONFIGS = {
    "huggingface": _HF_CONFIG, "openai": _OPEN_CLIP_CONFIG, "open_clip": _OPEN_CLIP_CONFIG
}  # fmt: skip
# Read with the weights; a cached conversion is outdated once they change.
SIDE_FILES = (_HF_CONFIG, _OPEN_CLIP_CONFIG, *TOKENIZER_FILES)
_MODEL_TYPES = ("clip", "clipseg")  # CLIPSeg's folder holds a whole CLIP
_TOWER_TYPES = {"clip_vision_model": "vision_config"}  # its config.json is the tower's section
# transformers omits its defaults in config.json: those of ViT-B/32.
_HF_DEFAULTS: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_HF_HEADS = {"vision_config": 12, "text_config": 8}
_OPEN_CLIP_TEXT_HEADS = 8
# What open_clip's models may have beyond CLIP without a tensor that shows it, and CLIP's values.
_OPEN_CLIP_SAME: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision_cfg": {
        "timm_model_name": (None, ""),
        "attentional_pool": (None, False),
        "pool_type": (None, "tok"),
        "no_ln_pre": (None, False),
    },
    "text_cfg": {
        "hf_model_name": (None, ""),
        "pool_type": (None, "argmax"),
        "no_causal_mask": (None, False),
    },
}
_NOT_OURS = ("tf_model.h5", "flax_model.msgpack")


def weights_file(path: Path) -> Path:
    """The file that holds the weights: `path` itself, or one in the directory `path`.

    It may be the index of a checkpoint of several files.

    Raises:
      FileNotFoundError: it does not exist. CheckpointError: neither a file nor a directory.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; give a file or a Hugging Face directory")
    if path.is_file():
        return path
    if not path.is_dir():  # a pipe would never end
        raise CheckpointError(f"{path} is neither a file nor a directory; give one that holds CLIP")
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    if others := [name for name in _NOT_OURS if (path / name).exists()]:
        remedy = f"it has {others[0]}; save it from PyTorch as model.safetensors"
    elif files := sorted(f.name for s in ("pt", "pth", "bin", "safetensors")
                         for f in path.glob(f"*.{s}")):  # fmt: skip
        remedy = f"give the file itself, such as {path / files[0]}"
    else:
        remedy = f"it has none of {', '.join(_WEIGHTS)}"
    raise FileNotFoundError(f"{path} holds no weights by Hugging Face's names: {remedy}")


def check_model_type(weights_path: Path) -> None:
    """Refuses a directory whose config.json names another kind of model than CLIP.

    Raises:
      CheckpointError: it does, or is damaged.
    """
    path = weights_path.parent / _HF_CONFIG
    if weights_path.name not in _WEIGHTS or not path.exists():
        return
    kind = read_json(path).get("model_type")
    if kind is not None and kind not in (*_MODEL_TYPES, *_TOWER_TYPES):
        raise CheckpointError(
            f"{path} says that this is a model of type {kind!r:.60}; only CLIP is supported"
        )


def with_side_files(config: CLIPConfig, layout: str, weights_path: Path) -> tuple[CLIPConfig, bool]:
    """`config` with the heads, activation and norm epsilon of a JSON file beside the weights.

    For the layout "huggingface" that is config.json, for OpenAI's names open_clip_config.json. Also
    whether there is one, so that nothing of it is a guess.

    Raises:
      CheckpointError: the JSON file is damaged, is of other sizes than the weights, or has what is
        not supported.
    """
    path = weights_path.parent / _CONFIGS.get(layout, "")
    if layout not in _CONFIGS or not path.exists():
        return config, False
    content = read_json(path)
    if layout == "huggingface" and not ("model_type" in content or "vision_config" in content):
        return config, False  # another program's config.json
    try:
        updated = (_huggingface if layout == "huggingface" else _open_clip)(config, content)
        check_heads(updated)
    except ValueError as error:
        raise CheckpointError(f"{path} is not the config of these weights: {error}") from error
    return updated, True


def _huggingface(config: CLIPConfig, content: dict[str, Any]) -> CLIPConfig:
    own = _TOWER_TYPES.get(str(content.get("model_type")))
    content = {own: content} if own else content

    def tower(sizes: Any, name: str) -> Any:
        # Files of early versions have the sections under another name.
        values = section(content, name) or section(content, f"{name}_dict")
        _check_sizes(values, _huggingface_sizes(sizes), name)
        activation = values.get("hidden_act", _HF_DEFAULTS["hidden_act"])
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"the activation {activation!r:.60} of {name}; supported are "
                f"{' and '.join(ACTIVATIONS)}"
            )
        return dataclasses.replace(
            sizes,
            heads=whole_number(values, "num_attention_heads", _HF_HEADS[name]),
            activation=activation,
            norm_eps=_epsilon(values, "layer_norm_eps"),
        )

    vision = config.vision
    if isinstance(vision, ViTConfig):
        vision = tower(vision, "vision_config")
    return CLIPConfig(vision, config.text and tower(config.text, "text_config"))


def _huggingface_sizes(sizes: ViTConfig | TextConfig) -> Iterator[tuple[str, int]]:
    yield "hidden_size", sizes.width
    yield "num_hidden_layers", sizes.layers
    if isinstance(sizes, ViTConfig):
        yield "patch_size", sizes.patch_px
        yield "image_size", sizes.image_px
    else:
        yield "max_position_embeddings", sizes.context_length


def _open_clip(config: CLIPConfig, content: dict[str, Any]) -> CLIPConfig:
    model = section(content, "model_cfg")
    if not model:
        raise ValueError("it has no model_cfg")
    sections = {name: section(model, name) for name in _OPEN_CLIP_SAME}
    for name, same in _OPEN_CLIP_SAME.items():
        for key, values in same.items():
            if (value := sections[name].get(key)) not in values:
                raise ValueError(f"{name}.{key} is {value!r:.60}, which is not supported")
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ValueError(f"quick_gelu is {quick!r:.60}, not true or false")
    config = config.replace(activation="quick_gelu" if quick else "gelu")
    vision, text = config.vision, config.text
    _check_sizes(sections["vision_cfg"], [("width", vision.width)], "vision_cfg")
    head_width = whole_number(sections["vision_cfg"], "head_width", 64)
    if isinstance(vision, ViTConfig):
        eps = _epsilon(section(sections["vision_cfg"], "norm_kwargs"), "eps")
        vision = dataclasses.replace(vision, heads=vision.width // head_width, norm_eps=eps)
    else:
        vision = dataclasses.replace(vision, heads=32 * vision.width // head_width)
    if text is not None:
        text_cfg = sections["text_cfg"]
        _check_sizes(text_cfg, [("width", text.width), ("layers", text.layers)], "text_cfg")
        text = dataclasses.replace(
            text,
            heads=whole_number(text_cfg, "heads", _OPEN_CLIP_TEXT_HEADS),
            norm_eps=_epsilon(section(text_cfg, "norm_kwargs"), "eps"),
        )
    return CLIPConfig(vision, text)


def _check_sizes(values: dict[str, Any], sizes: Any, name: str) -> None:
    for key, size in sizes:
        if (said := values.get(key)) not in (None, size):
            raise ValueError(f"{name}.{key} is {said!r:.60}, the weights have {size}")


def _epsilon(values: dict[str, Any], key: str) -> float:
    return fraction(values, key, _HF_DEFAULTS["layer_norm_eps"])
