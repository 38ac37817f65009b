"""Folders of Hugging Face and OpenCLIP in which one file is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import weights_convert
from clipseg_jax.core.modules import initialised
from clipseg_jax.models.clip import (
    CLIP,
    CLIPConfig,
    SigLIPTextConfig,
    SigLIPVisionConfig,
    Tokenizer,
)
from tests.fuzz.harness import INPUTS, Folder, check_reader
from tests.golden.transformers.make_tokenizers import HERE
from tests.weights_convert import toys
from tests.weights_convert.dino import toys as dino_toys
from weights_convert.clip.export import write_tokenizer
from weights_convert.formats.safetensors import write
from weights_convert.formats.torch_writer import write_torch

_TOKENIZER = Tokenizer([("a", "b</w>"), ("c", "a")])
_SIZES = {"width": 8, "layers": 1, "patch": 4, "grid": 2, "embed": 4, "layers_of_text": 1}


def read_folder(path: Path) -> None:
    """Reads everything of a folder but builds no model, which takes a second."""
    weights_convert.convert(path)


def read_dino_folder(path: Path) -> None:
    """The same of a DINO's."""
    weights_convert.convert_dino(path)


def _content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _safetensors(path: Path, arrays) -> bytes:
    with path.open("wb") as file:
        write(file, arrays, {"format": "pt"})
    return path.read_bytes()


def huggingface(folder: Path) -> Folder:
    """model.safetensors, config.json, vocab.json and merges.txt."""
    weights = toys.vit(vocabulary=len(_TOKENIZER.ids), **_SIZES)
    converted = weights_convert.convert(write_torch(folder / "a.pt", weights))
    made = weights_convert.export(converted, folder / "hf", "huggingface")
    write_tokenizer(_TOKENIZER, made)
    return _content(made)


def sharded(folder: Path) -> Folder:
    """Two shards with their index, config.json and tokenizer.json."""
    whole = huggingface(folder)
    (folder / "w.safetensors").write_bytes(whole["model.safetensors"])
    arrays = weights_convert.read_state_dict(folder / "w.safetensors")
    halves = [dict(list(arrays.items())[i::2]) for i in range(2)]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    out = {n: _safetensors(folder / n, half) for n, half in zip(names, halves, strict=True)}
    weight_map = {key: n for n, half in zip(names, halves, strict=True) for key in half}
    model = {"type": "BPE", "vocab": _TOKENIZER.ids, "merges": _TOKENIZER.merges}
    added = [{"id": i, "content": c} for c, i in list(_TOKENIZER.ids.items())[-2:]]
    files = {
        "model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map},
        "tokenizer.json": {"version": "1.0", "added_tokens": added, "model": model},
    }
    out |= {name: json.dumps(content).encode() for name, content in files.items()}
    return out | {"config.json": whole["config.json"]}


def open_clip(folder: Path) -> Folder:
    """open_clip_model.safetensors, open_clip_config.json, vocab.json and merges.txt."""
    whole = huggingface(folder)
    weights = toys.vit(vocabulary=len(_TOKENIZER.ids), **_SIZES)
    towers = {"vision_cfg": {"width": 8, "head_width": 4}, "text_cfg": {"heads": 2, "width": 64}}
    return {
        "open_clip_model.safetensors": _safetensors(folder / "o.safetensors", weights),
        "open_clip_config.json": json.dumps({"model_cfg": {"embed_dim": 4, **towers}}).encode(),
        "vocab.json": whole["vocab.json"],
        "merges.txt": whole["merges.txt"],
    }


def siglip(folder: Path, tokenizer: str = "spiece.model") -> Folder:
    """SigLIP's model.safetensors, config.json, preprocessor_config.json and its tokenizer."""
    vision = SigLIPVisionConfig(image_px=8, patch_px=4, width=8, layers=1, heads=2, mlp_width=8)
    text = SigLIPTextConfig(
        context_length=8, vocabulary=500, width=8, layers=1, heads=1, embed_dim=8, mlp_width=8
    )
    model = initialised(lambda rngs: CLIP(CLIPConfig(vision, text), rngs=rngs), 0)
    numbers = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return _content(weights_convert.export_huggingface(model, folder / "hf")) | {
        "preprocessor_config.json": json.dumps(numbers).encode(),
        tokenizer: (HERE / tokenizer).read_bytes(),
    }


def siglip2(folder: Path) -> Folder:
    """The same with byte pairs."""
    return siglip(folder, "tokenizer.json")


def dino(folder: Path) -> Folder:
    """model.safetensors and config.json of a DINOv2 with registers."""
    weights = dino_toys.state_dict(v2=True, registers=1, layers=1)
    converted = weights_convert.convert_dino(write_torch(folder / "d.pth", weights))
    return _content(weights_convert.export_dino(converted, folder / "dino", "dino_huggingface"))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("make", [huggingface, sharded, open_clip, siglip, siglip2])
def test_folder(make, inputs, tmp_path):
    check_reader(read_folder, [make(tmp_path)], inputs, ("CheckpointError",))


@pytest.mark.parametrize("inputs", INPUTS)
def test_dino_folder(inputs, tmp_path):
    check_reader(read_dino_folder, [dino(tmp_path)], inputs, ("CheckpointError",))
