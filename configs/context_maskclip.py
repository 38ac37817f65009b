"""MaskCLIP on Pascal Context (59 classes).

    python -m clipseg_jax.main --config=configs/context_maskclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2010

Published mIoU on the 5,105 validation images: RN50 18.5, RN50x16 20.3, ViT-B/16 21.7; the tower is
read from the weights.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import maskclip


def get_config() -> ConfigDict:
    config = maskclip.get_config()
    config.dataset.name = "context_59"
    config.dataset.root = "data/VOCdevkit/VOC2010"
    config.inference.scale_px = (520, 520)
    return config
