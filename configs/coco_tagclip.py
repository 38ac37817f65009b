"""TagCLIP, then CLIP-ES, on COCO 2017 val (80 classes and background), without annotation.

    python -m clipseg_jax.main --config=configs/coco_tagclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco2017

Published mIoU: masks 34.0, with CRF 35.3. mAP of the tags on COCO 2014 val, 68.7:
`--config.dataset.name=coco14_81 --config.dataset.root=data/coco2014
--config.stages=tags`.

Hardware: any number of devices; nothing is trained. Hours: not measured. Ours: not run, needs the
dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_es


def get_config() -> ConfigDict:
    config = clip_es.tagclip()
    config.dataset.name = "coco17_81"
    config.dataset.root = "data/coco2017"
    config.text.words = "coco"
    config.cams.box_threshold = 0.7
    return config
