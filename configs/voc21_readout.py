"""Read-outs of a frozen CLIP on PASCAL VOC 2012 (20 classes and background).

    python -m clipseg_jax.main --config=configs/voc21_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012

Published mIoU on the 1,449 validation images with ViT-B/16, by the name behind the colon: clip
18.8, value (MaskCLIP in this protocol) 43.4, sclip 59.1, clearclip 51.8, naclip 58.9, with
`--config.inference.refine=pamr` 64.1, resclip 61.1, scclip (the default) 64.6, proxyclip 61.3,
which needs `--config.dino.weights=dino_vitb8`.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("voc21", method)
