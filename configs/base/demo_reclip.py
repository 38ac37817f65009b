"""What ReCLIP and ReCLIP++ share on the embedded world."""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP, TINY_RESNET
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
    config.rectifier.scale_px = config.inference.scale_px = config.student.scale_px = (96, 96)
    config.rectifier.crop_px = config.student.crop_px = (96, 96)
    # Minutes instead of days: bigger steps, and masks less sharp, so that more positions learn.
    config.rectifier.total_epochs, config.rectifier.batch_size = 8, 8
    config.rectifier.optim.learning_rate = 0.1
    config.rectifier.gumbel_scale = 3.0 if model == "reclip++" else 300.0
    config.rectifier.temperature = 100.0
    config.rectifier.evaluate_every_epochs = 0  # no label decides which weights are used
    config.inference.class_threshold = 0.0
    # The tiny CLIP was trained at 64 pixels; of views of 192 it labels half the objects wrongly.
    config.student.ratio_range = (0.6, 1.1)
    config.student.init_weights = str(TINY_RESNET)
    config.student.blocks, config.student.width = (1, 1, 1, 1), 16
    config.student.total_epochs, config.student.batch_size = 24, 16
    config.student.optim.learning_rate = 0.05
    # The statistics of one batch distort the teacher here: of 12 classes it shows five or so.
    config.student.teacher_bn = "loaded_eval"
    config.student.aux = "off"  # terms that teach nothing, and take most of the time
    config.student.teacher_threshold = config.student.test_threshold = 0.0
    config.student.evaluate_every_epochs = 0
    config.run.pictures = 12
    return config
