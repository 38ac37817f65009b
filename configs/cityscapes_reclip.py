"""ReCLIP on Cityscapes (19 classes), without labels.

    python -m clipseg_jax.main --config=configs/cityscapes_reclip.py \\
        --config.clip.weights=ViT-B-16.pt --config.dataset.root=data/cityscapes \\
        --config.student.init_weights=resnet50_v1c-2cccc1ad.pth

2,975 training and 500 validation images. Published mIoU: none for ReCLIP on this dataset.
The second state of the code runs with `.py:2025`.
"""

from ml_collections import ConfigDict

from configs.base import reclip


def get_config(revision: str = "2024") -> ConfigDict:
    return reclip.dataset_config("reclip", "cityscapes", revision)
