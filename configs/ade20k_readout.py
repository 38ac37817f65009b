"""Read-outs of a frozen CLIP on ADE20K (150 classes).

    python -m clipseg_jax.main --config=configs/ade20k_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/ADEChallengeData2016

Published mIoU on the 2,000 validation images with ViT-B/16, by the name behind the colon: clip 3.1,
value (MaskCLIP in this protocol) 11.9, sclip 16.1, clearclip 16.7, naclip 17.4, with
`--config.inference.refine=pamr` 19.1, resclip 18.0, scclip (the default) 20.1, proxyclip 20.2,
which needs `--config.dino.weights=dino_vitb8`.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("ade20k", method)
