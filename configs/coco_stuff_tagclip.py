"""TagCLIP, then CLIP-ES, on COCO-Stuff val in 27 classes, without annotation or background.

    python -m clipseg_jax.main --config=configs/coco_stuff_tagclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco_stuff164k

171 fine classes are looked for, and counted as the 27 that they belong to. Published mIoU: masks
30.1, with CRF 31.0.

Hardware: any number of devices; nothing is trained. Hours: not measured. Ours: not run, needs the
dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_es


def get_config() -> ConfigDict:
    config = clip_es.tagclip()
    config.dataset.name = "coco_stuff_27"
    config.dataset.root = "data/coco_stuff164k"
    # The published 4172 of val's 5000 images; "val" for all, without TagCLIP's list.
    config.dataset.train_split = config.dataset.mask_split = "tagclip_val"
    config.text.words = "coco_stuff"
    config.tags.affinity_blocks = tuple(range(11))
    config.tags.relative_threshold = 0.1
    config.cams.box_threshold = 0.7
    config.cams.background = False
    return config
