"""Writes the tiny CLIP as a Hugging Face directory in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import weights_convert
from clipseg_jax.core.files import write_json
from clipseg_jax.demo_clip import vocabulary
from clipseg_jax.models.clip import CLIP
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from weights_convert.clip.export import write_tokenizer


def save_huggingface(clip: CLIP, directory: Path) -> None:
    """Writes model.safetensors (float16), config.json, tokenizer and preprocessing files."""
    directory.mkdir(parents=True, exist_ok=True)
    weights_convert.export_huggingface(clip, directory, dtype=np.float16)
    write_tokenizer(vocabulary.tokenizer(), directory)
    side = clip.cfg.vision.image_px
    about = {
        "do_resize": True,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_normalize": True,
        "image_mean": [round(value / 255, 8) for value in CLIP_MEAN],
        "image_std": [round(value / 255, 8) for value in CLIP_STD],
        "resample": 3,
    }
    write_json(directory / "preprocessor_config.json", about)
    tokenizer = {
        "model_max_length": clip.text.cfg.context_length,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(directory / "tokenizer_config.json", tokenizer)
