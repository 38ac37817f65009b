"""CLIP-RC on Pascal Context, background included: 50 classes seen, 10 unseen. An inferred setting.

    python -m clipseg_jax.main --config=configs/context_clip_rc.py:inductive \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2010

`:transductive` starts from the inductive run half-way (--config.clip_rc.init_weights), `:fully`
sees all.
The published code has neither a configuration nor a loader nor numbers for this dataset, which the
paper names as its third. Classes and unseen ones are those common since ZS3Net; sizes, steps and
weights follow its VOC configuration and a public one of ZegCLIP (spec clip_rc, section 11).

Hardware: any number of devices that divides the batch of 16 (published for VOC: 2 GPUs). Hours: not
measured. Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import clip_rc


def get_config(setting: str = "inductive") -> ConfigDict:
    return clip_rc.dataset_config("context", setting)
