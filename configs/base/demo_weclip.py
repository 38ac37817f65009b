"""What WeCLIP and WTCLIP share on the embedded world."""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.demo.world import CLASSES, SCENERY
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from configs.base import weclip


def get_config(model: str) -> ConfigDict:
    """Published constants, but for sizes and durations of a small world."""
    config = weclip.get_config(model)
    config.clip.weights = str(TINY_CLIP)
    config.clip.mean, config.clip.std = CLIP_MEAN, CLIP_STD  # the tiny CLIP was trained with these
    config.dataset.name = "demo_world"
    config.dataset.root = "workdir/demo_world"  # painted there if absent
    config.dataset.class_names = ("background", *CLASSES)
    config.dataset.train_split = config.dataset.validation_split = "train"
    config.text.templates = "demo_world"
    config.text.words = ""
    config.text.background_words = SCENERY
    config.head.width, config.head.heads = 96, 3
    config.cams.temperature = 20.0  # what the tiny CLIP was trained to
    config.cams.early_blocks = config.cams.late_blocks = 2  # of four
    config.par.dilations = (1, 2, 4)  # of pictures a third as large
    config.par.iterations = 10
    config.head.crop_px = (128, 128)
    config.head.ratio_range = (0.75, 1.5)
    config.head.batch_size = 16
    config.head.total_steps = 600
    config.head.late_step = 300
    config.head.affinity_radius = 4
    config.head.evaluate_every_steps = 0
    config.run.log_every_steps = 20
    config.run.checkpoint_every_steps = 100
    config.inference.scale_px = (128, 128)
    config.run.batch_size = 16
    config.run.pictures = 12
    return config
