"""The sizes of OpenAI's CLIPs by name, and CLIPs of these sizes with random weights.

For what needs a network and not what it has learned: compiling ahead of time, measuring speed.
Source: Radford et al. 2021, tables 19 and 20.
"""

from __future__ import annotations

from clipseg_jax.core.modules import initialised
from clipseg_jax.models.clip import CLIP, CLIPConfig, ResNetConfig, Tokenizer, ViTConfig
from clipseg_jax.models.clip.text import TextConfig
from weights_convert.clip.cache import config_to_dict
from weights_convert.clip.convert import LoadedCLIP

RANDOM = "random:"  # "random:ViT-B/16" stands for such a CLIP where a config names weights


def _text(width: int, embed_dim: int) -> TextConfig:
    return TextConfig(77, 49408, width, 12, width // 64, embed_dim)


ARCHITECTURES = {
    "RN50": CLIPConfig(ResNetConfig(224, 64, (3, 4, 6, 3), 32, 1024), _text(512, 1024)),
    "RN101": CLIPConfig(ResNetConfig(224, 64, (3, 4, 23, 3), 32, 512), _text(512, 512)),
    "RN50x4": CLIPConfig(ResNetConfig(288, 80, (4, 6, 10, 6), 40, 640), _text(640, 640)),
    "RN50x16": CLIPConfig(ResNetConfig(384, 96, (6, 8, 18, 8), 48, 768), _text(768, 768)),
    "RN50x64": CLIPConfig(ResNetConfig(448, 128, (3, 15, 36, 10), 64, 1024), _text(1024, 1024)),
    "ViT-B/32": CLIPConfig(ViTConfig(224, 32, 768, 12, 12, 512), _text(512, 512)),
    "ViT-B/16": CLIPConfig(ViTConfig(224, 16, 768, 12, 12, 512), _text(512, 512)),
    "ViT-L/14": CLIPConfig(ViTConfig(224, 14, 1024, 24, 16, 768), _text(768, 768)),
    "ViT-L/14@336px": CLIPConfig(ViTConfig(336, 14, 1024, 24, 16, 768), _text(768, 768)),
}


def random_clip(
    weights: str,
    *,
    activation: str | None = None,
    heads: object = None,
    dtype: str | None = None,
    seed: int = 0,
) -> LoadedCLIP:
    """The CLIP that "random:NAME" stands for, with OpenAI's tokenizer.

    Raises:
      ValueError: an unknown name, or heads, which follow from the name.
    """
    name = weights.removeprefix(RANDOM)
    if name not in ARCHITECTURES:
        raise ValueError(f"no CLIP {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    if heads is not None:
        raise ValueError(f"{weights} has the heads of {name}; omit --config.clip.heads")
    config = ARCHITECTURES[name]
    choices = {"activation": activation, "dtype": dtype}
    config = config.replace(**{key: value for key, value in choices.items() if value is not None})
    model = initialised(lambda rngs: CLIP(config, rngs=rngs), seed)
    meta = {"source": weights, "sha256": weights, "config": config_to_dict(config)}
    return LoadedCLIP(model, Tokenizer.openai(), meta)
