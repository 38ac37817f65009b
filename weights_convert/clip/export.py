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
from clipseg_jax.models.clip import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    SigLIPTextConfig,
    SigLIPVisionConfig,
    TextConfig,
    Tokenizer,
    ViTConfig,
)
from clipseg_jax.models.clip.tokenizer import END, START
from weights_convert.clip import layouts
from weights_convert.clip.build import clip_to_state_dict, config_of
from weights_convert.clip.cache import config_from_dict, tokenizer_from_dict
from weights_convert.clip.choices import lost_choices
from weights_convert.clip.huggingface import HIDDEN_ACT
from weights_convert.clip.keys import HUGGINGFACE, NAFLEX, OPENAI, SIGLIP
from weights_convert.clip.siglip_tokenizer_files import tokenizer_file
from weights_convert.errors import CheckpointError
from weights_convert.formats import safetensors as safetensors_file
from weights_convert.formats.converted import Converted
from weights_convert.formats.torch_writer import write_torch

Layout = Literal["openai", "huggingface", "maskclip", "maskclip_backbone"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
_log = logging.getLogger(__name__)


def to_state_dict(converted: Converted) -> dict[str, np.ndarray]:
    """The source's state dict by OpenAI's names, bit for bit, including entries beside weights.

    Raises:
      CheckpointError: SigLIP, which has no such names.
    """
    if converted.record["config"]["kind"] == "siglip":
        raise CheckpointError("SigLIP has no names of OpenAI's; export it with --to huggingface")
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
        content: dict[str, Any] = to_state_dict(converted)
        _warn_of_losses(converted, Path(path), layout)
        if layout != "openai":
            content = layouts.to_maskclip(content, backbone=layout == "maskclip_backbone")
        return write_torch(path, content)
    if layout == "huggingface":
        record = converted.record
        config, tokenizer = config_from_dict(record["config"]), record["tokenizer"]
        ids = {k: v for k, v in _carried(converted).items() if k.endswith("position_ids")}
        directory, weights = Path(path), _weights(converted)
        if record["config"]["kind"] == "siglip":
            _write_huggingface(directory, weights, config, ids, None)
            if tokenizer is not None:
                name, data = tokenizer_file(tokenizer)
                write_atomic(directory / name, lambda file: file.write(data))
        else:
            of_clip = tokenizer_from_dict(tokenizer)
            assert isinstance(of_clip, Tokenizer)
            _write_huggingface(directory, weights, config, ids, of_clip)
            write_tokenizer(of_clip, directory)
        if record.get("image_mean") is not None:
            numbers = {key: record[key] for key in ("image_mean", "image_std")}
            write_json(directory / "preprocessor_config.json", numbers)
        return directory
    raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")


def export_huggingface(model: CLIP, directory: str | Path, *, dtype: Any = np.float32) -> Path:
    """Writes model.safetensors and config.json as transformers' CLIPModel or SiglipModel does.

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
    if isinstance(vision, ResNetConfig) or text is None:
        raise CheckpointError("Hugging Face's CLIP supports only ViT towers, with a text tower")
    siglip = isinstance(vision, SigLIPVisionConfig)
    naflex = siglip and vision.position_resize == "bilinear_antialias"
    table = NAFLEX if naflex else SIGLIP if siglip else HUGGINGFACE
    renamed = layouts.to_huggingface(weights, table) | dict(extra)
    write_atomic(
        directory / "model.safetensors",
        lambda file: safetensors_file.write(file, renamed, {"format": "pt"}),
    )
    if isinstance(text, SigLIPTextConfig):
        kind, model = ("siglip2", "Siglip2Model") if naflex else ("siglip", "SiglipModel")
        towers = [_tower(text, f"{kind}_text_model"), _tower(vision, f"{kind}_vision_model")]
        if naflex:
            del towers[1]["image_size"]
            towers[1]["num_patches"] = vision.grid**2
        content: dict[str, Any] = {
            "architectures": [model],
            "model_type": kind,
            "text_config": towers[0] | {"projection_size": text.embed_dim},
            "vision_config": towers[1],
        }
    else:
        # By these ids transformers finds the end of a text.
        start, end = text.vocabulary - 2, text.vocabulary - 1
        if tokenizer is not None and tokenizer.ids[END] < text.vocabulary:
            start, end = tokenizer.ids[START], tokenizer.ids[END]
        ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
        projection = {"projection_dim": vision.embed_dim}
        content = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            **projection,
            "logit_scale_init_value": 2.6592,
            "text_config": _tower(text, "clip_text_model") | projection | ids,
            "vision_config": _tower(vision, "clip_vision_model") | projection,
        }
    write_json(directory / "config.json", content)
    return directory


def _tower(
    tower: ViTConfig | TextConfig | SigLIPVisionConfig | SigLIPTextConfig, model_type: str
) -> dict[str, Any]:
    """A tower's section of config.json."""
    if isinstance(tower, (ViTConfig, SigLIPVisionConfig)):
        sizes = {"image_size": tower.image_px, "patch_size": tower.patch_px}
    else:
        sizes = {"vocab_size": tower.vocabulary, "max_position_embeddings": tower.context_length}
    return {
        "model_type": model_type,
        "hidden_act": HIDDEN_ACT[tower.activation],
        "layer_norm_eps": tower.norm_eps,
        **sizes,
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
    }


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
