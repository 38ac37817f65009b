"""WeCLIP on PASCAL VOC 2012: a head on a frozen CLIP ViT-B/16, trained from image labels.

    python -m clipseg_jax.main --config=configs/voc_weclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012

10,582 images of SBD's train_aug (`python -m input_pipeline.prepare voc_aug --root DIR --write`),
whose label maps say which classes they show, as published; `--config.labels.source=annotations`
takes the XML files instead. Published mIoU on val: 74.9 without CRF (`evaluate`), 76.4 with
(`evaluate_crf`); users report 73.3 to 73.9 and 74.4 to 75.7.

Hardware: any number of devices that divides the batch of 4 (published: 1 GPU). Hours: not measured.
Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import weclip


def get_config() -> ConfigDict:
    config = weclip.get_config()
    config.dataset.name = "voc12_aug"
    config.dataset.root = "data/VOCdevkit/VOC2012"
    return config
