"""Read-outs of a frozen CLIP on PASCAL VOC 2012 (20 classes, background ignored).

    python -m clipseg_jax.main --config=configs/voc20_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012

Published mIoU on the 1,449 validation images with ViT-B/16, by the name behind the colon: clip
49.4, value (MaskCLIP in this protocol) 74.9, sclip 80.4, clearclip 80.9, naclip 79.7, with
`--config.inference.refine=pamr` 83.0, resclip 86.0, scclip (the default) 84.3, proxyclip 80.3,
which needs `--config.dino.weights=dino_vitb8`.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("voc20", method)
