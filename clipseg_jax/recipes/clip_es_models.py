"""What CLIP-ES's, TagCLIP's and WeCLIP's recipes read of a config: words, image tower, sizes."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.models.clip import VisionTransformer
from clipseg_jax.recipes.clip import load_clip
from clipseg_jax.recipes.data import find_dataset
from input_pipeline.class_sets import prompt_set


def word_lists(
    config: ConfigDict, *, synonyms: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts of the classes and of the background.

    `config.text.words` names a published list ("voc", "coco", "coco_stuff"); without one they are
    the dataset's own and `config.text.background_words`.
    """
    if config.text.words:
        words = prompt_set(config.text.words, synonyms=synonyms)
        return words.prompts, words.background
    return find_dataset(config.dataset).prompts, tuple(config.text.background_words)


def image_tower(
    config: ConfigDict, *, pad_to_patch: bool = True, position_half_stored: bool = True
) -> VisionTransformer:
    """CLIP's ViT as CLIP-ES and TagCLIP read it: with positions resized bilinearly.

    WeCLIP's drops rows and columns that don't fill a patch (`pad_to_patch` False); TagCLIP's keeps
    the positions of images of CLIP's own size in float32 (`position_half_stored` False).

    Raises:
      ValueError: a CLIP without a ViT.
    """
    clip = load_clip(config).model
    if not isinstance(clip.visual, VisionTransformer):
        raise ValueError(f"{config.clip.weights} has no ViT, whose attention is needed")
    vision = dataclasses.replace(
        clip.visual.cfg,
        position_resize="bilinear",
        position_half=config.clip.position_half,
        position_half_stored=position_half_stored,
        pad_to_patch=pad_to_patch,
    )
    made = weights_convert.with_config(clip, dataclasses.replace(clip.cfg, vision=vision)).visual
    assert isinstance(made, VisionTransformer)
    return made


def whole_patches(height: int, width: int, patch_px: int) -> tuple[int, int]:
    """The next size of whole patches, each side for itself (spec clip_es, section 2)."""
    return -(-height // patch_px) * patch_px, -(-width // patch_px) * patch_px
