"""CLIP, as all methods use it."""

from clipseg_jax.models.clip.clip import CLIP, CLIPConfig, as_text_embeddings, l2_normalize
from clipseg_jax.models.clip.resnet import ModifiedResNet, ResNetConfig
from clipseg_jax.models.clip.text import TextConfig, TextTransformer
from clipseg_jax.models.clip.tokenizer import Tokenizer
from clipseg_jax.models.clip.vit import VisionTransformer, ViTConfig

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ModifiedResNet",
    "ResNetConfig",
    "TextConfig",
    "TextTransformer",
    "Tokenizer",
    "ViTConfig",
    "VisionTransformer",
    "as_text_embeddings",
    "l2_normalize",
]
