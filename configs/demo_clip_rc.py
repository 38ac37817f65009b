"""CLIP-RC on the embedded painted world with the embedded tiny CLIP; 8 of 32 names are unseen.

    python -m clipseg_jax.main --config=configs/demo_clip_rc.py:inductive

`:transductive` starts from the inductive run half-way, `:fully` sees all classes. Nothing is
downloaded. More numbers: clipseg_jax/demo/README.md.

Hardware: a CPU. Hours: a fifth of an hour each on one CPU core. Paper: none on this world. Ours,
pAcc / mIoU(S) / mIoU(U) / hIoU: inductive 76.9 / 62.6 / 58.0 / 60.1, transductive 78.3 / 62.4 /
61.6 / 62.0 (means of 3 seeds; MaskCLIP 74.4 / 59.9 / 48.5 / 53.6).
"""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.demo.world import COLOURED
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from configs.base import clip_rc

# Of each kind other colours are seen, and of each colour other kinds.
UNSEEN = (
    "white boat", "yellow fish", "red cow", "orange tent",
    "blue car", "red bus", "white plane", "purple balloon",
)  # fmt: skip


def get_config(setting: str = "inductive") -> ConfigDict:
    config = clip_rc.get_config(setting)
    config.clip.weights = str(TINY_CLIP)
    config.dataset.name = "demo_world"
    config.dataset.root = "workdir/demo_coloured"  # painted there if absent
    config.dataset.class_names = COLOURED
    config.dataset.unseen = UNSEEN
    config.dataset.reduce_zero_label = True  # scenery is ignored, as VOC's background
    config.text.templates = "demo_world"
    # Sizes of a small world; twelve patches a side, six for each region.
    config.clip_rc.crop_px, config.clip_rc.region_side = 96, 2
    config.clip_rc.heads, config.clip_rc.hidden = 4, 384
    config.inference.mean, config.inference.std = CLIP_MEAN, CLIP_STD
    config.inference.scale_px = (100_000, 96)
    config.inference.crop_px, config.inference.stride_px = (96, 96), (80, 80)
    config.clip_rc.scale_px = (384, 96)
    config.clip_rc.ratio_range = (0.5, 1.15)  # the tiny CLIP was trained at 64 pixels
    # Minutes instead of days.
    config.clip_rc.batch_size = 16
    config.clip_rc.total_steps = 600
    config.clip_rc.dropout = 0.0
    config.clip_rc.optim.learning_rate, config.clip_rc.optim.end_learning_rate = 5e-4, 1e-5
    config.clip_rc.optim.warmup_steps = 50
    # The first gradients are ten times the later ones; 0.999 would remember them to the end.
    config.clip_rc.optim.betas = (0.9, 0.98)
    config.clip_rc.seen_offset = 0.0  # names that differ from seen ones in a word need no help
    if setting == "transductive":
        config.clip_rc.optim.learning_rate = 2e-4  # it goes on from a trained head
        config.clip_rc.init_weights = "workdir/demo_clip_rc_inductive/clip_rc_half.safetensors"
    config.run.pictures = 12
    return config
