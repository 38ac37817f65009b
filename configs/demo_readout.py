"""Read-outs of the embedded tiny CLIP on the embedded painted world.

    python -m clipseg_jax.main --config=configs/demo_readout.py:naclip --workdir=workdir/demo_naclip

By the name behind the colon: clip, value (as MaskCLIP), sclip, naclip, clearclip, scclip (the
default), resclip. Nothing is downloaded. There is no tiny DINO, so no proxyclip.

Hardware: a CPU. Hours: minutes on two CPU cores. Papers: none on this world. Ours: docs/results.md.
"""

from ml_collections import ConfigDict

from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.demo.world import CLASSES, SCENERY
from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    if method == "proxyclip":
        raise ValueError("proxyclip needs a DINO, and the demo has none; choose another read-out")
    config = readouts.get_config(method)
    config.clip.weights = str(TINY_CLIP)
    config.dataset.name = "demo_world"
    config.dataset.root = "workdir/demo_world"  # painted there if absent
    config.dataset.class_names = ("background", *CLASSES)
    config.text.templates = "demo_world"
    config.text.background_words = SCENERY
    config.inference.scale_px = (96, 96)
    config.inference.mode = "whole"
    config.inference.temperature = 20.0  # of the tiny CLIP
    config.run.pictures = 12
    return config
