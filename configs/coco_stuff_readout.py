"""Read-outs of a frozen CLIP on COCO-Stuff 164k (171 classes).

    python -m clipseg_jax.main --config=configs/coco_stuff_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco_stuff164k

Published mIoU on the 5,000 validation images with ViT-B/16, by the name behind the colon: clip 5.7,
value (MaskCLIP in this protocol) 16.7, sclip 22.4, clearclip 23.9, naclip 23.3, with
`--config.inference.refine=pamr` 25.7, resclip 24.7, scclip (the default) 26.6, proxyclip 26.5,
which needs `--config.dino.weights=dino_vitb8`.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("coco_stuff", method)
