"""CLIP-ES on PASCAL VOC 2012: masks from image labels, and a DeepLabV2 trained on them.

    python -m clipseg_jax.main --config=configs/voc_clip_es.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012 \\
        --config.student.init_weights=deeplabv1_resnet101-coco.pth

10,582 images of SBD's train_aug (`python -m input_pipeline.prepare voc_aug --root DIR --write`).
Published mIoU: CAMs 70.8 and with CRF 75.0, both on train (`evaluate_cams`, `evaluate_masks`);
student on val 73.8 with COCO's weights. With ImageNet's `voc_clip_es.py:imagenet`, 71.1.

Hardware: any number of devices; the student's two parts of a batch of 10 use up to 5. Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_es


def get_config(weights: str = "coco") -> ConfigDict:
    config = clip_es.get_config()
    config.dataset.name = "voc12_aug"
    config.dataset.root = "data/VOCdevkit/VOC2012"
    config.student.optim.learning_rate = {"coco": 2.5e-5, "imagenet": 2e-4}[weights]
    return config
