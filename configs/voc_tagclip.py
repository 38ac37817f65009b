"""TagCLIP, then CLIP-ES, on PASCAL VOC 2012 val: masks from no annotation at all.

    python -m clipseg_jax.main --config=configs/voc_tagclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012

Published mIoU: masks 64.8 (`evaluate_cams`), with CRF 68.7 (`evaluate_masks`). mAP of the tags on
VOC 2007 test, 92.8: `--config.dataset.name=voc07_20 --config.dataset.train_split=test
--config.dataset.root=data/VOCdevkit/VOC2007 --config.stages=tags`.

Hardware: any number of devices; nothing is trained. Hours: not measured. Ours: not run, needs the
dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_es


def get_config() -> ConfigDict:
    config = clip_es.tagclip()
    config.dataset.name = "voc12_aug"
    config.dataset.root = "data/VOCdevkit/VOC2012"
    config.cams.affinity_blocks = (4, 5, 6, 7, 8, 9, 10)  # without the last, on VOC only
    return config
