"""MaskCLIP on the embedded painted world with the embedded tiny CLIP.

    python -m clipseg_jax.main --config=configs/demo_maskclip.py --workdir=workdir/demo_maskclip

Nothing is downloaded. Two minutes on two CPU cores. Figures: clipseg_jax/demo/README.md.
"""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.demo.world import CLASSES, SCENERY
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from configs.base import maskclip


def get_config() -> ConfigDict:
    config = maskclip.get_config()
    config.clip.weights = str(TINY_CLIP)
    # The tiny CLIP was trained with OpenAI's choices, so it is read with them.
    config.clip.activation = "quick_gelu"
    config.clip.norm_eps = 1e-5
    config.clip.position_keep_count = False
    config.clip.mean, config.clip.std = CLIP_MEAN, CLIP_STD
    config.dataset.name = "demo_world"
    config.dataset.root = "workdir/demo_world"  # painted there if absent
    config.dataset.class_names = ("background", *CLASSES)
    config.text.templates = "demo_world"
    config.text.background_words = SCENERY
    config.inference.scale_px = (96, 96)
    config.run.pictures = 12
    return config
