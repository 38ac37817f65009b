"""ReCLIP on Pascal Context 59, without labels.

    python -m clipseg_jax.main --config=configs/context_reclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2010 \\
        --config.student.init_weights=resnet50_v1c

4,996 training and 5,104 validation images. Published mIoU: rectified 25.8, distilled 33.8.
The second state of the code runs with `.py:2025`; its README gives the same numbers.

Hardware: one device for the published batch of 1, any number that divides 16 for distillation.
Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import reclip


def get_config(revision: str = "2024") -> ConfigDict:
    return reclip.dataset_config("reclip", "context", revision)
