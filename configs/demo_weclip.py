"""WeCLIP on the embedded painted world with the embedded tiny CLIP.

    python -m clipseg_jax.main --config=configs/demo_weclip.py --workdir=workdir/demo_weclip

Nothing is downloaded. More numbers: clipseg_jax/demo/README.md.

Hardware: a CPU. Hours: a quarter of an hour on one CPU core. Paper: none on this world. Ours: mIoU
67.1, with CRF 75.4 (means of 3 seeds).
"""

from ml_collections import ConfigDict

from configs.base import demo_weclip


def get_config() -> ConfigDict:
    return demo_weclip.get_config("weclip")
