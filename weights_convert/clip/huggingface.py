"""Directories of Hugging Face and open_clip: their weights file, and the JSON files beside it.

Sources: spec clip, sections 10.4 and 10.5; the defaults of `transformers.CLIPConfig` and
`transformers.SiglipConfig`. OpenCLIP's own config: `open_clip.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipseg_jax.models.clip import (
    CLIPConfig,
    ResNetConfig,
    SigLIPTextConfig,
    SigLIPVisionConfig,
    TextConfig,
    ViTConfig,
)
from weights_convert.clip.choices import check_heads
from weights_convert.clip.json_files import fraction, read_json, section, whole_number
from weights_convert.clip.open_clip import check_sizes, image_numbers, open_clip_config
from weights_convert.clip.shards import INDEX_FILES
from weights_convert.clip.siglip_tokenizer_files import SIGLIP_TOKENIZER_FILES
from weights_convert.clip.tokenizer_files import TOKENIZER_FILES
from weights_convert.errors import CheckpointError

WEIGHTS_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    *INDEX_FILES,
)
_HF_CONFIG, _OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
_PREPROCESSOR = "preprocessor_config.json"
_CONFIGS = {
    "huggingface": _HF_CONFIG, "siglip": _HF_CONFIG, "siglip2": _HF_CONFIG,
    "openai": _OPEN_CLIP_CONFIG, "open_clip": _OPEN_CLIP_CONFIG,
}  # fmt: skip
# Read with the weights; a cached conversion is outdated once they change.
SIDE_FILES = (
    _HF_CONFIG,
    _OPEN_CLIP_CONFIG,
    _PREPROCESSOR,
    *dict.fromkeys((*TOKENIZER_FILES, *SIGLIP_TOKENIZER_FILES)),
)
# CLIPSeg's folder holds a whole CLIP; SigLIP 2 of a fixed resolution is of type siglip.
_MODEL_TYPES = ("clip", "clipseg", "siglip", "siglip2")
# Their config.json is the tower's section.
_TOWER_TYPES = {f"{name}_vision_model": "vision_config" for name in ("clip", "siglip", "siglip2")}


class _Defaults(NamedTuple):
    """What transformers omits in config.json: of ViT-B/32, or of SigLIP's base model."""

    hidden_act: str
    layer_norm_eps: float
    image_heads: int
    text_heads: int


_SIGLIP_DEFAULTS = _Defaults("gelu_pytorch_tanh", 1e-6, 12, 12)
_DEFAULTS = {
    "huggingface": _Defaults("quick_gelu", 1e-5, 12, 8),
    "siglip": _SIGLIP_DEFAULTS,
    "siglip2": _SIGLIP_DEFAULTS,
}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
HIDDEN_ACT = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
LEAST_STD = 1e-6  # pixels are divided by it
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
    for name in WEIGHTS_FILES:
        if (path / name).is_file():
            return path / name
    if others := [name for name in _NOT_OURS if (path / name).exists()]:
        remedy = f"it has {others[0]}; save it from PyTorch as model.safetensors"
    elif files := sorted(f.name for s in ("pt", "pth", "bin", "safetensors")
                         for f in path.glob(f"*.{s}")):  # fmt: skip
        remedy = f"give the file itself, such as {path / files[0]}"
    else:
        remedy = f"it has none of {', '.join(WEIGHTS_FILES)}"
    raise FileNotFoundError(f"{path} holds no weights by Hugging Face's names: {remedy}")


def check_model_type(weights_path: Path) -> None:
    """Refuses a directory whose config.json names another kind of model than CLIP.

    Raises:
      CheckpointError: it does, or is damaged.
    """
    path = weights_path.parent / _HF_CONFIG
    if weights_path.name not in WEIGHTS_FILES or not path.exists():
        return
    kind = read_json(path).get("model_type")
    if kind is not None and kind not in (*_MODEL_TYPES, *_TOWER_TYPES):
        raise CheckpointError(
            f"{path} says that this is a model of type {kind!r:.60}; only CLIP and SigLIP are "
            "supported"
        )


def with_side_files(config: CLIPConfig, layout: str, weights_path: Path) -> tuple[CLIPConfig, bool]:
    """`config` with the heads, activation and norm epsilon of a JSON file beside the weights.

    For Hugging Face's layouts that is config.json, for OpenAI's names open_clip_config.json. Also
    whether there is one, so that nothing of it is a guess.

    Raises:
      CheckpointError: the JSON file is damaged, is of other sizes than the weights, or has what is
        not supported.
    """
    path = weights_path.parent / _CONFIGS.get(layout, "")
    if layout not in _CONFIGS or not path.exists():
        return config, False
    content = read_json(path)
    of_transformers = layout in _DEFAULTS
    if of_transformers and not ("model_type" in content or "vision_config" in content):
        return config, False  # another program's config.json
    try:
        if of_transformers:
            kind = str(content.get("model_type"))
            of_siglip = kind.removesuffix("_vision_model") if kind.startswith("siglip") else None
            if kind != "None" and of_siglip != (layout if layout.startswith("siglip") else None):
                raise ValueError(f"it is of model_type {kind!r}, the weights have {layout}'s names")
            updated = _huggingface(config, content, _DEFAULTS[layout])
        else:
            updated = open_clip_config(config, content)
        check_heads(updated)
    except ValueError as error:
        raise CheckpointError(f"{path} is not the config of these weights: {error}") from error
    return updated, True


def image_statistics(
    layout: str, weights_path: Path
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation per channel, of pixels from 0 to 1, as a JSON file beside weights says.

    That is preprocessor_config.json, or OpenCLIP's own config; None: no file says them.

    Raises:
      CheckpointError: the JSON file is damaged.
    """
    own = _CONFIGS.get(layout) == _OPEN_CLIP_CONFIG
    path = weights_path.parent / (_OPEN_CLIP_CONFIG if own else _PREPROCESSOR)
    if layout not in _CONFIGS or not path.exists():
        return None
    try:
        content = read_json(path)
        content = section(content, "preprocess_cfg") if own else content
        keys = ("mean", "std") if own else ("image_mean", "image_std")
        mean, std = (image_numbers(content, key, LEAST_STD * i) for i, key in enumerate(keys))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return None if mean is None or std is None else (mean, std)


def _huggingface(config: CLIPConfig, content: dict[str, Any], defaults: _Defaults) -> CLIPConfig:
    own = _TOWER_TYPES.get(str(content.get("model_type")))
    content = {own: content} if own else content

    def tower(sizes: Any, name: str, heads: int) -> Any:
        # Files of early versions have the sections under another name.
        values = section(content, name) or section(content, f"{name}_dict")
        check_sizes(values, _huggingface_sizes(sizes), name)
        activation = values.get("hidden_act", defaults.hidden_act)
        if not isinstance(activation, str) or activation not in _ACTIVATIONS:
            raise ValueError(
                f"the activation {activation!r:.60} of {name}; supported are "
                f"{', '.join(_ACTIVATIONS)}"
            )
        changed = dataclasses.replace(
            sizes,
            heads=whole_number(values, "num_attention_heads", heads),
            activation=_ACTIVATIONS[activation],
            norm_eps=fraction(values, "layer_norm_eps", defaults.layer_norm_eps),
        )
        return _with_image_px(changed, values) if name == "vision_config" else changed

    vision = config.vision
    if not isinstance(vision, ResNetConfig):
        vision = tower(vision, "vision_config", defaults.image_heads)
    text = config.text and tower(config.text, "text_config", defaults.text_heads)
    return CLIPConfig(vision, text)


def _huggingface_sizes(
    sizes: ViTConfig | SigLIPVisionConfig | TextConfig | SigLIPTextConfig,
) -> Iterator[tuple[str, int]]:
    yield "hidden_size", sizes.width
    yield "num_hidden_layers", sizes.layers
    yield "intermediate_size", sizes.mlp_width or 4 * sizes.width
    if isinstance(sizes, (ViTConfig, SigLIPVisionConfig)):
        yield "patch_size", sizes.patch_px
    else:
        yield "max_position_embeddings", sizes.context_length


def _with_image_px(
    sizes: ViTConfig | SigLIPVisionConfig, values: dict[str, Any]
) -> ViTConfig | SigLIPVisionConfig:
    """`sizes` with the image size of a config: by shapes, all that is known is the whole patches.

    SigLIP's SO400M/14 at 384 px has 27 x 27 patches, and drops the 6 pixels beyond them.
    """
    if isinstance(sizes, SigLIPVisionConfig):  # NaFlex has this in place of an image size
        check_sizes(values, [("num_patches", sizes.grid**2)], "vision_config")
    side = whole_number(values, "image_size", sizes.image_px)
    if side // sizes.patch_px != sizes.grid:
        raise ValueError(f"vision_config.image_size is {side}, the weights have {sizes.image_px}")
    return dataclasses.replace(sizes, image_px=side)
