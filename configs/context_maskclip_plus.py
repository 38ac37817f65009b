"""MaskCLIP+ on Pascal Context (59 classes without annotation; zero-shot 60, with background).

    python -m clipseg_jax.main \\
        --config=configs/context_maskclip_plus.py:student=deeplabv2_r50,teacher=vit_b16 \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2010 \\
        --config.student.init_weights=resnet50_v1c

4,998 training and 5,105 validation images. Published mIoU without annotation, 4,000 steps, by
teacher: RN50 23.9, RN50x16 25.2 (both ResNet-101), ViT-B/16 31.1 (whose config says ResNet-101 and
trains a ResNet-50). With `student=deeplabv3plus_r101,teacher=rn50,setting=zero_shot`, 40,000 steps:
48.4, of the ten unseen classes 66.7 in the paper. Key smoothing and prompt denoising of the
teacher: `--config.maskclip.ks_threshold=1.0`, `--config.maskclip.pd_threshold=0.5`.

Hardware: any number of devices that divides the batch of 16 (published: 4 GPUs). Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import maskclip_plus


def get_config(variant: str = "") -> ConfigDict:
    return maskclip_plus.dataset_config("context", variant)
