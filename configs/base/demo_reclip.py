"""What ReCLIP and ReCLIP++ share on the embedded world."""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.demo.world import CLASSES
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from configs.base import reclip


def get_config(model: str) -> ConfigDict:
    """Published constants, but for sizes and durations of a small world.

    Twelve classes and no background, as published: what is no object is not scored.
    """
    config = reclip.get_config(model, "2024")
    stages = list(config.stages)
    config.stages = (*stages[:3], "evaluate_maskclip", *stages[3:])
    config.clip.weights = str(TINY_CLIP)
    # The tiny CLIP was trained with these, and is read with them.
    config.clip.activation = "quick_gelu"
    config.clip.mean, config.clip.std = CLIP_MEAN, CLIP_STD
    config.dataset.name = "demo_world"
    config.dataset.root = "workdir/demo_world"  # painted there if absent
    config.dataset.class_names = CLASSES
    config.dataset.reduce_zero_label = True
    config.text.templates = "demo_world"
    # Windows are too small for a CLIP of 64 pixels; its logits are cosines x 20.
    config.tags.method, config.tags.k, config.tags.threshold = "whole", 1, 6.0
    config.rectify.scale_px = config.inference.scale_px = config.distill.scale_px = (96, 96)
    config.rectify.crop_px = config.distill.crop_px = (96, 96)
    # Minutes instead of days: bigger steps, and masks less sharp, so that more positions learn.
    config.rectify.epochs, config.rectify.batch_size = 8, 8
    config.rectify.optim.rate = 0.1
    config.rectify.gumbel_scale = 3.0
    config.rectify.temperature = 100.0
    config.rectify.evaluate_every_epochs = 0  # no label decides which weights are used
    config.inference.class_threshold = 0.0
    config.distill.backbone = "random"
    config.distill.blocks, config.distill.width = (1, 1, 1, 1), 16
    config.distill.epochs, config.distill.batch_size = 12, 16
    config.distill.optim.rate = 0.3
    config.distill.aux = "off"  # terms that teach nothing, and take most of the time
    config.distill.teacher_threshold = config.distill.test_threshold = 0.0
    config.distill.evaluate_every_epochs = 0
    config.evaluate.pictures = 12
    return config
