"""From a converted CLIP back to files that PyTorch loads."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from clipseg_jax.core.files import write_atomic, write_json
from clipseg_jax.models.clip import CLIP, CLIPConfig, Tokenizer, ViTConfig
from clipseg_jax.models.clip.tokenizer import END, START
from weights_convert.clip import layouts
from weights_convert.clip.build import clip_to_state_dict, config_of
from weights_convert.clip.cache import config_from_dict, tokenizer_from_dict
from weights_convert.clip.choices import lost_choices
from weights_convert.clip.keys import OPENAI
from weights_convert.errors import CheckpointError
from weights_convert.formats import safetensors as safetensors_file
from weights_convert.formats.converted import Converted
from weights_convert.formats.torch_writer import write_torch

Layout = Literal["openai", "huggingface", "maskclip", "maskclip_backbone"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
_log = logging.getLogger(__name__)


def to_state_dict(converted: Converted) -> dict[str, np.ndarray]:
    """The source's state dict by OpenAI's names, bit for bit, including entries beside weights."""
    return _weights(converted) | {
        key: value
        for key, value in _carried(converted).items()
        if key != "logit_bias" and not key.endswith("position_ids")
    }


def export(converted: Converted, path: str | Path, layout: str = "openai") -> Path:
    """Writes a file or directory that PyTorch code loads; dtypes and bits as in the source.

    Layouts: "openai", a state dict in a torch zip file; "maskclip" and "maskclip_backbone", the two
    files (float32) that the MaskCLIP code reads; "huggingface", a directory with model.safetensors,
    config.json and the tokenizer's files. All but the last cannot say activation, heads and norm
    epsilon: where they are not OpenAI's, a warning names them.

    Raises:
      ValueError: unknown layout. CheckpointError: the layout does not support the model.
      OSError: it cannot be written.
    """
    if layout in LAYOUTS and layout != "huggingface":
        _warn_of_losses(converted, Path(path), layout)
    if layout == "openai":
        return write_torch(path, to_state_dict(converted))
    if layout in ("maskclip", "maskclip_backbone"):
        content = layouts.to_maskclip(
            to_state_dict(converted), backbone=layout == "maskclip_backbone"
        )
        return write_torch(path, content)
    if layout == "huggingface":
        config = config_from_dict(converted.record["config"])
        ids = {k: v for k, v in _carried(converted).items() if k.endswith("position_ids")}
        tokenizer = tokenizer_from_dict(converted.record["tokenizer"])
        directory = _write_huggingface(Path(path), _weights(converted), config, ids, tokenizer)
        write_tokenizer(tokenizer, directory)
        return directory
    raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")


def export_huggingface(model: CLIP, directory: str | Path, *, dtype: Any = np.float32) -> Path:
    """Writes model.safetensors and config.json as `transformers.CLIPModel` reads them.

    The tokenizer is written apart, by `write_tokenizer`; its end token is taken to be the last id.

    Raises:
      CheckpointError: a ResNet, a CLIP without its text tower, or with a norm epsilon of its own
        inside blocks, which config.json cannot say.
    """
    vision = model.cfg.vision
    if isinstance(vision, ViTConfig) and vision.block_norm_eps not in (None, vision.norm_eps):
        raise CheckpointError(
            f"block_norm_eps {vision.block_norm_eps} beside norm_eps {vision.norm_eps}: "
            "config.json has one for both; export the CLIP that the image tower was made from"
        )
    weights = {key: value.astype(dtype) for key, value in clip_to_state_dict(model).items()}
    return _write_huggingface(Path(directory), weights, model.cfg, {}, None)


def _warn_of_losses(converted: Converted, path: Path, layout: str) -> None:
    """Names what readers of a layout without heads, activation and epsilon take for another."""
    implied = config_of(OPENAI.to_left(converted.arrays))
    if layout != "openai":
        implied = CLIPConfig(implied.vision, None)  # MaskCLIP's files are of the image tower
    config = config_from_dict(converted.record["config"])
    if lost := lost_choices(config, implied):
        _log.warning(
            "the layout %s cannot say what readers of %s have to be told: %s; --to huggingface "
            "keeps it",
            layout, path, ", ".join(lost),
        )  # fmt: skip


def _weights(converted: Converted) -> dict[str, np.ndarray]:
    weights = OPENAI.to_left(converted.arrays)
    return {key: v for key, v in weights.items() if key not in converted.record["absent"]}


def _carried(converted: Converted) -> dict[str, np.ndarray]:
    out = {}
    for key, (dtype, value) in converted.record["carried"].items():
        # MaskCLIP's files store these counts as floats.
        counter = key.endswith(".num_batches_tracked")
        out[key] = np.asarray(value, np.int64 if counter else np.dtype(dtype))
    return out


def _write_huggingface(
    directory: Path,
    weights: Mapping[str, np.ndarray],
    config: CLIPConfig,
    extra: Mapping[str, np.ndarray],
    tokenizer: Tokenizer | None,
) -> Path:
    vision, text = config.vision, config.text
    if not isinstance(vision, ViTConfig) or text is None:
        raise CheckpointError("Hugging Face's CLIP supports only ViT towers, with a text tower")
    renamed = layouts.to_huggingface(weights) | dict(extra)
    write_atomic(
        directory / "model.safetensors",
        lambda file: safetensors_file.write(file, renamed, {"format": "pt"}),
    )
    # By these ids transformers finds the end of a text.
    start, end = text.vocabulary - 2, text.vocabulary - 1
    if tokenizer is not None and tokenizer.ids[END] < text.vocabulary:
        start, end = tokenizer.ids[START], tokenizer.ids[END]
    content = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_act": text.activation,
            "layer_norm_eps": text.norm_eps,
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "projection_dim": text.embed_dim,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.norm_eps,
            "image_size": vision.image_px,
            "patch_size": vision.patch_px,
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "projection_dim": vision.embed_dim,
        },
    }
    write_json(directory / "config.json", content)
    return directory


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes vocab.json and merges.txt as Hugging Face reads them."""
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
    texts = {
        "vocab.json": json.dumps(tokenizer.ids, ensure_ascii=False),
        "merges.txt": "\n".join(merges) + "\n",
    }
    for name, text in texts.items():
        write_atomic(directory / name, functools.partial(_write_text, text=text))


def _write_text(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8"))
