"""WTCLIP on COCO 2014, 80 classes and background: WeCLIP with a gate and a wavelet block.

    python -m clipseg_jax.main --config=configs/coco_wtclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco2014

No number is published; WeCLIP's is 47.1 with CRF. Folders as for configs/coco_weclip.py.

Hardware: any number of devices that divides the batch of 4 (published: 1 GPU). Hours: not measured.
Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import weclip


def get_config() -> ConfigDict:
    return weclip.for_coco(weclip.get_config("wtclip"))
