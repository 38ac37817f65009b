"""Read-outs of a frozen CLIP on Cityscapes (19 classes).

    python -m clipseg_jax.main --config=configs/cityscapes_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/cityscapes

Published mIoU on the 500 validation images with ViT-B/16, by the name behind the colon: clip 6.5,
value (MaskCLIP in this protocol) 24.9, sclip 32.2, clearclip 30.0, naclip 35.5, with
`--config.inference.refine=pamr` 38.3, resclip 35.9, scclip (the default) 41.0, proxyclip 38.1,
which needs `--config.dino.weights=dino_vitb8`.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("cityscapes", method)
