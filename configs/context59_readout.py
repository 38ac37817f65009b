"""Read-outs of a frozen CLIP on Pascal Context (59 classes).

    python -m clipseg_jax.main --config=configs/context59_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2010

Published mIoU on the 5,105 validation images with ViT-B/16, by the name behind the colon: clip
11.1, value (MaskCLIP in this protocol) 26.4, sclip 34.2, clearclip 35.9, naclip 35.2, with
`--config.inference.refine=pamr` 38.4, resclip 36.8, scclip (the default) 40.1, proxyclip 39.1,
which needs `--config.dino.weights=dino_vitb8`.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("context59", method)
