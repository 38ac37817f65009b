"""MaskCLIP+ on PASCAL VOC 2012 (20 classes, background ignored; 21 with it).

    python -m clipseg_jax.main \\
        --config=configs/voc_maskclip_plus.py:student=deeplabv2_r101,teacher=rn50x16 \\
        --config.clip.weights=RN50x16.pt --config.dataset.root=data/VOCdevkit/VOC2012 \\
        --config.student.init_weights=resnet101_v1c

10,582 training images, of SBD too (`python -m input_pipeline.prepare voc_aug --root DIR --write`),
and 1,449 of validation. Published mIoU without annotation, 2,000 steps: RN50 58.0, RN50x16 67.5.
With `teacher=rn50,setting=zero_shot`, 20,000 steps: 87.8, of the five unseen classes 86.1 in the
paper. `classes=21` adds a background, whose embedding is learned.

Hardware: any number of devices that divides the batch of 16 (published: 4 GPUs). Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import maskclip_plus


def get_config(variant: str = "") -> ConfigDict:
    return maskclip_plus.dataset_config("voc", variant)
