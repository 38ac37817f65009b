"""What ReCLIP and ReCLIP++ share on the embedded world."""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.demo.world import CLASSES, SCENERY
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from configs.base import reclip


def get_config(model: str) -> ConfigDict:
    """Published constants, but for sizes and durations of a small world."""
    config = reclip.get_config(model, "2024")
    config.clip.weights = str(TINY_CLIP)
    # The tiny CLIP was trained with these, and is read with them.
    config.clip.activation = "quick_gelu"
    config.clip.mean, config.clip.std = CLIP_MEAN, CLIP_STD
    config.dataset.name = "demo_world"
    config.dataset.root = "workdir/demo_world"  # painted there if absent
    config.dataset.class_names = ("background", *CLASSES)
    config.text.templates = "demo_world"
    config.text.background_words = SCENERY
    config.tags.k, config.tags.threshold = 2, 20.0
    config.rectify.scale_px = config.inference.scale_px = config.distill.scale_px = (96, 96)
    config.rectify.crop_px = config.distill.crop_px = (96, 96)
    config.rectify.epochs, config.distill.epochs = 4, 4
    config.rectify.batch_size = 8
    config.inference.class_threshold = 0.0
    config.distill.backbone = "random"
    config.distill.blocks, config.distill.width = (1, 1, 1, 1), 16
    config.distill.teacher_threshold = config.distill.test_threshold = 0.0
    config.evaluate.pictures = 12
    return config
