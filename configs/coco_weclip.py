"""WeCLIP on COCO 2014, 80 classes and background: a head on a frozen CLIP, from image labels.

    python -m clipseg_jax.main --config=configs/coco_weclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco2014

82,081 training and 40,137 validation images. The masks that CLIP-ES distributes are found under
their own names and under WeCLIP's (SegmentationClass/{train,val}/<number>.png); `python -m
input_pipeline.prepare coco14 --root DIR --write` makes them from the annotated instances.
Published mIoU on val: 47.1, with CRF; users report 45.1. The published value of the batch is 4,
papers that quote it say 8.

Hardware: any number of devices that divides the batch of 4 (published: 1 GPU). Hours: not measured.
Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import weclip


def get_config() -> ConfigDict:
    return weclip.for_coco(weclip.get_config())
