"""ReCLIP++ on Cityscapes (19 classes), without labels.

    python -m clipseg_jax.main --config=configs/cityscapes_reclippp.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/cityscapes \\
        --config.student.init_weights=resnet50_v1c

2,975 training and 500 validation images. Published mIoU: rectified 21.7, distilled 26.9.
The state of July 2025, `configs/cityscapes_reclippp.py:2025`, rectifies to 26.5 and distils
nothing.

Hardware: one device for the published batch of 1, any number that divides 16 for distillation.
Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import reclip


def get_config(revision: str = "2024") -> ConfigDict:
    return reclip.dataset_config("reclip++", "cityscapes", revision)
