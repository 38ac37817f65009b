"""ReCLIP on Cityscapes (19 classes), without labels.

    python -m clipseg_jax.main --config=configs/cityscapes_reclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/cityscapes \\
        --config.student.init_weights=resnet50_v1c

2,975 training and 500 validation images. Published mIoU: none for ReCLIP on this dataset.
The second state of the code runs with `.py:2025`.

Hardware: one device for the published batch of 1, any number that divides 16 for distillation.
Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import reclip


def get_config(revision: str = "2024") -> ConfigDict:
    return reclip.dataset_config("reclip", "cityscapes", revision)
