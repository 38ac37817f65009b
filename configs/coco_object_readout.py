"""Read-outs of a frozen CLIP on COCO-Object (80 classes and background).

    python -m clipseg_jax.main --config=configs/coco_object_readout.py:scclip \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco_stuff164k

Published mIoU on the 5,000 validation images with ViT-B/16, by the name behind the colon: clip 8.1,
value (MaskCLIP in this protocol) 20.6, sclip 30.5, clearclip 33.0, naclip 33.2, with
`--config.inference.refine=pamr` 36.2, resclip 35.0, scclip (the default) 37.7, proxyclip 37.5,
which needs `--config.dino.weights=dino_vitb8`.

`python -m input_pipeline.prepare coco_object --write` makes the labels from COCO-Stuff's maps.

Hardware: any device; nothing is trained. Hours: not measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import readouts


def get_config(method: str = readouts.DEFAULT) -> ConfigDict:
    return readouts.dataset_config("coco_object", method)
