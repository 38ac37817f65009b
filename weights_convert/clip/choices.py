"""Activation and heads: what a checkpoint may not say, and what is then assumed.

Files by OpenAI's names hold neither. OpenAI's own models have QuickGELU and heads of 64 channels;
OpenCLIP's are mostly of GELU, some with other heads, and have the same shapes.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from clipseg_jax.models.clip import CLIPConfig, ResNetConfig, SigLIPVisionConfig
from weights_convert.errors import CheckpointError

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
_DTYPES = ("float32", "bfloat16", "float16")
_log = logging.getLogger(__name__)

Heads = tuple[int, int]  # of the image tower, of the text tower


def check_choices(
    activation: str | None = None,
    heads: Sequence[int] | None = None,
    norm_eps: float | None = None,
    dtype: str | None = None,
) -> None:
    """Validates explicit choices before any file is read; None is no choice.

    Raises:
      ValueError: one that cannot be meant.
    """
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if heads is not None:
        counts = [] if isinstance(heads, (str, int, float)) else list(heads)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in counts)
        if len(counts) != 2 or not whole:
            raise ValueError(
                f"heads {heads!r}; give two numbers, those of the image and of the text tower, "
                "such as (12, 8)"
            )
    if norm_eps is not None and not 0 < norm_eps < 1:
        raise ValueError(f"norm_eps {norm_eps!r}; give a number above 0 and below 1, such as 1e-5")
    if dtype not in (None, *_DTYPES):
        raise ValueError(f"dtype {dtype!r}; choose one of {', '.join(_DTYPES)}")


def parse_heads(text: str) -> Heads:
    """The value of `--heads`, such as "12,8" or, as in Python, "(12, 8)".

    Raises:
      ValueError: anything else.
    """
    parts = re.fullmatch(r"\(?\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\)?", text.strip())
    heads = (int(parts[1]), int(parts[2])) if parts else (0, 0)
    if min(heads) < 1:
        raise ValueError(
            f"--heads is {text!r}; give two numbers, those of the image and of the text tower, "
            "such as 12,8"
        )
    return heads


def choose(config: CLIPConfig, activation: str | None, heads: Sequence[int] | None) -> CLIPConfig:
    """`config` with explicit choices, which go before those of its file.

    Raises:
      CheckpointError: heads that do not divide a tower's width.
    """
    if activation is not None and (config.text or not isinstance(config.vision, ResNetConfig)):
        config = config.replace(activation=activation)
    if heads is not None:
        vision = dataclasses.replace(config.vision, heads=heads[0])
        text = config.text and dataclasses.replace(config.text, heads=heads[1])
        config = CLIPConfig(vision, text)
    try:
        check_heads(config)
    except ValueError as error:
        raise CheckpointError(
            f"{error}; give its heads with `heads`, such as (12, 8), or --heads 12,8"
        ) from error
    return config


def check_heads(config: CLIPConfig) -> None:
    """Checks that the heads of each tower divide its width.

    Raises:
      ValueError: they don't.
    """
    for name, tower in (("image", config.vision), ("text", config.text)):
        if tower is None:
            continue
        width = 32 * tower.width if isinstance(tower, ResNetConfig) else tower.width
        if tower.heads < 1 or width % tower.heads:
            raise ValueError(f"{tower.heads} heads don't divide width {width} of the {name} tower")


def warn_of_guesses(path: Path, config: CLIPConfig, guessed: Sequence[str]) -> None:
    """Says which choices of `config` its file does not hold."""
    vision, text = config.vision, config.text
    transformer = text or vision
    assumed = []
    if "activation" in guessed and not isinstance(transformer, ResNetConfig):
        assumed.append(f"activation {transformer.activation}")
    if "heads" in guessed:
        assumed.append(f"heads {vision.heads}" + (f",{text.heads}" if text else ""))
    if isinstance(vision, SigLIPVisionConfig) and "heads" in guessed:
        _log.warning(
            "%s does not say its heads; 64 channels each are assumed: %s. Put its config.json "
            "beside it, or give `heads` (such as --heads 16,16)",
            path, assumed[-1],
        )  # fmt: skip
    elif assumed:
        _log.warning(
            "%s does not say its activation or heads; OpenAI's are assumed: %s. For another model "
            "put its config.json or open_clip_config.json beside it, or give `activation` and "
            "`heads` (such as --activation gelu --heads 12,8; in recipes --config.clip.activation, "
            "of MaskCLIP and ReCLIP .trained_activation, and --config.clip.heads)",
            path, ", ".join(assumed),
        )  # fmt: skip


def lost_choices(config: CLIPConfig, implied: CLIPConfig) -> list[str]:
    """What of `config` readers of a layout without it, who take `implied`, would not know."""
    lost = []
    for name in ("vision", "text"):
        tower, other = getattr(config, name), getattr(implied, name)
        for field in ("activation", "heads", "norm_eps"):
            ours, theirs = getattr(tower, field, None), getattr(other, field, None)
            if tower and other and ours != theirs:
                lost.append(f"{name} {field} {ours} (they take {theirs})")
    return lost
