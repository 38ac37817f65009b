"""MaskCLIP on COCO-Stuff 164k (171 classes).

    python -m clipseg_jax.main --config=configs/coco_stuff_maskclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco_stuff164k

Published mIoU on the 5,000 validation images: RN50 10.2, RN50x16 13.6, ViT-B/16 12.5; the tower is
read from the weights.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import maskclip


def get_config() -> ConfigDict:
    config = maskclip.get_config()
    config.dataset.name = "coco_stuff_164k"
    config.dataset.root = "data/coco_stuff164k"
    return config
