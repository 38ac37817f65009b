"""CLIP, as all methods use it."""

from clipseg_jax.models.clip.clip import (
    CLIP,
    CLIPConfig,
    ImageTower,
    VisionConfig,
    as_text_embeddings,
    l2_normalize,
    with_class_token,
)
from clipseg_jax.models.clip.resnet import ModifiedResNet, ResNetConfig
from clipseg_jax.models.clip.siglip import (
    SigLIPText,
    SigLIPTextConfig,
    SigLIPVision,
    SigLIPVisionConfig,
)
from clipseg_jax.models.clip.siglip_tokenizer import SigLIPTokenizer
from clipseg_jax.models.clip.text import TextConfig, TextTransformer
from clipseg_jax.models.clip.tokenizer import Tokenizer
from clipseg_jax.models.clip.vit import VisionTransformer, ViTConfig

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ImageTower",
    "ModifiedResNet",
    "ResNetConfig",
    "SigLIPText",
    "SigLIPTextConfig",
    "SigLIPTokenizer",
    "SigLIPVision",
    "SigLIPVisionConfig",
    "TextConfig",
    "TextTransformer",
    "Tokenizer",
    "ViTConfig",
    "VisionConfig",
    "VisionTransformer",
    "as_text_embeddings",
    "l2_normalize",
    "with_class_token",
]
