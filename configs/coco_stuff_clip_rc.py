"""CLIP-RC on COCO-Stuff 164k: 156 classes seen, 15 unseen.

    python -m clipseg_jax.main --config=configs/coco_stuff_clip_rc.py:inductive \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/coco_stuff164k

`:transductive` starts from the inductive run half-way (--config.clip_rc.init_weights), `:fully`
sees all.
`--config.text.file=coco_multi.npy` takes the published text embeddings. 118,287 training and 5,000
validation images. Published pAcc / mIoU(S) / mIoU(U) / hIoU: inductive 63.1 / 40.9 / 41.6 / 41.2,
transductive 69.9 / 42.0 / 60.8 / 49.7, fully 70.8 / 42.9 / 64.1 / 51.4. The batch of 16 and the
start of the transductive run at step 40,000 are inferred.

Hardware: any number of devices that divides the batch of 16 (published for VOC: 2 GPUs). Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_rc


def get_config(setting: str = "inductive") -> ConfigDict:
    return clip_rc.dataset_config("coco_stuff", setting)
