"""WTCLIP on the embedded painted world with the embedded tiny CLIP.

    python -m clipseg_jax.main --config=configs/demo_wtclip.py --workdir=workdir/demo_wtclip

Nothing is downloaded. More numbers: clipseg_jax/demo/README.md.

Hardware: a CPU. Hours: a third of an hour on one CPU core. Paper: none on this world. Ours: mIoU
65.4, with CRF 74.3 (seed 0).
"""

from ml_collections import ConfigDict

from configs.base import demo_weclip


def get_config() -> ConfigDict:
    return demo_weclip.get_config("wtclip")
