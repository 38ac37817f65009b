"""CLIP-ES on the embedded painted world: masks from image labels, by the embedded tiny CLIP.

    python -m clipseg_jax.main --config=configs/demo_clip_es.py --workdir=workdir/demo_clip_es

Nothing is downloaded. More numbers: clipseg_jax/demo/README.md.

Hardware: a CPU. Hours: a quarter of an hour on one CPU core. Paper: none on this world. Ours: mIoU
of CAMs 62.2, with CRF 66.0, student 70.7, with CRF 81.5 (3 seeds).
"""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP, TINY_RESNET
from clipseg_jax.demo.world import CLASSES, SCENERY
from configs.base import clip_es


def get_config() -> ConfigDict:
    config = clip_es.get_config()
    config.clip.weights = str(TINY_CLIP)
    config.clip.position_half = False
    config.dataset.name = "demo_world"
    config.dataset.root = "workdir/demo_world"  # painted there if absent
    config.dataset.class_names = ("background", *CLASSES)
    config.dataset.train_split = config.dataset.mask_split = "train"
    config.text.templates = "demo_world"
    config.text.words = ""
    config.text.background_words = SCENERY
    config.cams.temperature = 20.0  # what the tiny CLIP was trained to
    config.cams.patch_px = 8
    config.cams.affinity_blocks = (0, 1)  # of four: the last two attend to other objects
    config.run.batch_size = 32
    config.masks.image = "raw"
    config.student.init_weights, config.student.variant = str(TINY_RESNET), "v1c"
    config.student.blocks, config.student.width = (1, 1, 1, 1), 16
    config.student.loss = "balanced"
    config.student.crop_px = (96, 96)
    config.student.scales = (0.75, 1.0, 1.25)
    config.student.batch_size = 16
    config.student.total_steps = 900
    # SGD gains too little in so few steps; and classifiers must not run ahead of the backbone.
    config.student.optim.name = "adamw"
    config.student.optim.learning_rate = 1e-3
    config.student.head_learning_rate_factor = 0.2
    config.train.accumulate_steps = 1
    config.run.pictures = 12
    return config
