"""WTCLIP on PASCAL VOC 2012: WeCLIP with a gate and a wavelet block in its head.

    python -m clipseg_jax.main --config=configs/voc_wtclip.py \\
        --config.clip.weights=ViT-B/16 --config.dataset.root=data/VOCdevkit/VOC2012

No number is published; WeCLIP's are 74.9 without and 76.4 with CRF. `voc_wtclip.py:released` are
the values as released, a state of debugging: 5000 steps, each followed by a validation, whose
images the late phase counts. The released edge step changes nothing and is off; `--config.cams.edge
=scaled` makes it work.

Hardware: any number of devices that divides the batch of 4 (published: 1 GPU). Hours: not measured.
Ours: not run, needs the dataset.
"""

from ml_collections import ConfigDict

from configs.base import weclip


def get_config(state: str = "weclip") -> ConfigDict:
    config = weclip.get_config("wtclip")
    config.dataset.name = "voc12_aug"
    config.dataset.root = "data/VOCdevkit/VOC2012"
    if state == "released":
        config.head.total_steps = 5000
        config.head.evaluate_every_steps = 1
        config.head.late_step = 11  # 15000 counted with 1464 validation images after every step
    elif state != "weclip":
        raise ValueError(f"no state {state!r}; choose weclip or released")
    return config
