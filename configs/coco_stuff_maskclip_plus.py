"""MaskCLIP+ on COCO-Stuff 164k (171 classes).

    python -m clipseg_jax.main \\
        --config=configs/coco_stuff_maskclip_plus.py:student=deeplabv2_r50,teacher=vit_b16 \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco_stuff164k \\
        --config.student.init_weights=resnet50_v1c

118,287 training and 5,000 validation images. Published mIoU without annotation, 8,000 steps, by
teacher: RN50 13.8, RN50x16 17.3 (both ResNet-101), ViT-B/16 18.0 (whose config says ResNet-101 and
trains a ResNet-50). With `student=deeplabv2_r101,teacher=rn50,setting=zero_shot`, 80,000 steps:
39.7, of the 15 unseen classes 54.7 in the paper.

Hardware: any number of devices that divides the batch of 16 (published: 4 GPUs). Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import maskclip_plus


def get_config(variant: str = "") -> ConfigDict:
    return maskclip_plus.dataset_config("coco_stuff", variant)
