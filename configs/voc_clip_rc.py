"""CLIP-RC on PASCAL VOC 2012: 15 classes seen, 5 unseen, background ignored.

    python -m clipseg_jax.main --config=configs/voc_clip_rc.py:inductive \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012

`:transductive` starts from the inductive run half-way (--config.clip_rc.init_weights), `:fully`
sees all.
`--config.text.file=voc12_single.npy` takes the published text embeddings. 10,582 training and 1,449
validation images. Published pAcc / mIoU(S) / mIoU(U) / hIoU: inductive 95.8 / 92.8 / 84.4 / 88.4,
transductive 97.0 / 93.9 / 92.2 / 93.0, fully 97.1 / 94.1 / 93.4 / 93.7.

Hardware: any number of devices that divides the batch of 16 (published for VOC: 2 GPUs). Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_rc


def get_config(setting: str = "inductive") -> ConfigDict:
    return clip_rc.dataset_config("voc", setting)
