"""MaskCLIP on PASCAL VOC 2012 (20 classes, background ignored).

    python -m clipseg_jax.main --config=configs/voc_maskclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012

Published mIoU on the 1,449 validation images: RN50 41.5, RN50x16 50.9, ViT-B/16 49.5; the tower is
read from the weights.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import maskclip


def get_config() -> ConfigDict:
    config = maskclip.get_config()
    config.dataset.name = "voc12_20"
    config.dataset.root = "data/VOCdevkit/VOC2012"
    return config
