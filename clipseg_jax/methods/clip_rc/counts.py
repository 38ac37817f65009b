"""CLIP-RC's parameters and multiply-adds, as the published code reports them.

Spec clip_rc, section 12.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from clipseg_jax.core.files import write_json
from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.clip_rc.build import class_words, model_config
from clipseg_jax.methods.clip_rc.model import CLIPRCConfig
from clipseg_jax.methods.clip_rc.task import trainable
from clipseg_jax.models.clip import TextConfig, TextTransformer, ViTConfig
from clipseg_jax.stages.clip import load_clip
from weights_convert.clip.build import flat_arrays
from weights_convert.trained.clip_rc.published import build

_VISION = ViTConfig(224, 16, 768, 12, 12, 512)  # ViT-B/16, of the published configurations
_TEXT = TextConfig(77, 49408, 512, 12, 8, 512)


def count(config: ConfigDict, workdir: Path) -> dict:
    """Stage: counts.json and a table, for the config's sizes and one training crop.

    Sizes of CLIP are those of `clip.weights`, ViT-B/16's without. Nothing is computed.
    """
    vision, text = _VISION, _TEXT
    if config.clip.weights:
        sizes = load_clip(config).model.cfg
        assert isinstance(sizes.vision, ViTConfig)
        vision, text = sizes.vision, sizes.text  # type: ignore[assignment]
    cfg = model_config(config)
    figures = counts(vision, text, cfg, len(class_words(config)))
    if jax.process_index() == 0:
        write_json(workdir / "counts.json", figures)
        _show(figures)
    return figures


def counts(
    vision: ViTConfig, text: TextConfig | None, cfg: CLIPRCConfig, classes: int
) -> dict[str, Any]:
    """Parameters, and multiply-adds of one crop without recovery decoder and text tower.

    Parameters of unused layers, which published checkpoints hold and the published count includes,
    are added, so that the totals are the published ones. Multiply-adds are the compiler's for what
    runs here, where regions are averaged before the product with the patches.
    """

    vision = dataclasses.replace(vision, image_px=cfg.crop_px, position_resize="bilinear")
    model = abstract(lambda rngs: build(vision, cfg, classes, rngs))
    sizes = {path: math.prod(leaf.shape) for path, leaf in flat_arrays(model).items()}
    e = vision.embed_dim
    # Self-attention and a norm of each layer.
    unused = (2 * cfg.decoder_blocks + 2) * (4 * e * e + 6 * e)
    encoder = sum(n for path, n in sizes.items() if path.startswith("encoder."))
    head = sum(n for path, n in sizes.items() if path.startswith("head.")) + unused
    learned = sum(n for path, n in sizes.items() if trainable(path))
    tower = 0
    if text is not None:
        text_tower = abstract(lambda rngs: TextTransformer(text, rngs=rngs))
        tower = sum(math.prod(leaf.shape) for leaf in flat_arrays(text_tower).values())

    images = jax.ShapeDtypeStruct((1, cfg.crop_px, cfg.crop_px, 3), jnp.float32)
    backbone = multiply_adds(lambda model, x: model.encoder(x), model, images)
    total = multiply_adds(lambda model, x: model(x), model, images)
    return {
        "crop_px": cfg.crop_px,
        "classes": classes,
        "trainable_params": learned + unused,
        "total_params": encoder + head + tower,
        "backbone_params": encoder,
        "head_params": head,
        "text_encoder_params": tower,
        "head_params_never_used": unused,
        "gmac": {
            "backbone": backbone / 1e9,
            "text_encoder": 0.0,
            "decode_head": (total - backbone) / 1e9,
            "total": total / 1e9,
        },
    }


def _show(figures: dict[str, Any]) -> None:
    title = f"{figures['classes']} classes, {figures['crop_px']} px"
    table = Table("", "G multiply-adds", "M parameters", title=title)
    for name, parameters in (
        ("backbone", "backbone_params"),
        ("text_encoder", "text_encoder_params"),
        ("decode_head", "head_params"),
        ("total", "total_params"),
    ):
        row = figures["gmac"][name], figures[parameters] / 1e6
        table.add_row(name, *(f"{number:.2f}" for number in row), end_section=name == "decode_head")
    table.add_row("trained", "", f"{figures['trainable_params'] / 1e6:.2f}")
    Console().print(table)


def multiply_adds(function: Callable[..., Any], *args: Any) -> float:
    """XLA's count for `function(*args)`, whose arguments may be shapes; nothing is run.

    XLA counts floating point operations, of which a multiply-add is two. The program is lowered for
    GPUs, where nothing is done in turn: of a loop, XLA would count one iteration.
    """
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))
    return float(lowered.cost_analysis()["flops"]) / 2
