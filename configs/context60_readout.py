"""Read-outs of a frozen CLIP on Pascal Context (59 classes and background).

    python -m clipseg_jax.main --config=configs/context60_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2010

Published mIoU on the 5,105 validation images with ViT-B/16, by the name behind the colon: clip 9.9,
value (MaskCLIP in this protocol) 23.2, sclip 30.4, clearclip 32.6, naclip 32.2, with
`--config.inference.refine=pamr` 35.0, resclip 33.5, scclip (the default) 36.8, proxyclip 35.3,
which needs `--config.dino.weights=dino_vitb8`.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("context60", method)
