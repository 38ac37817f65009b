"""ReCLIP on the embedded painted world with the embedded tiny CLIP.

    python -m clipseg_jax.main --config=configs/demo_reclip.py --workdir=workdir/demo_reclip

Nothing is downloaded. Figures: clipseg_jax/demo/README.md.
"""

from ml_collections import ConfigDict

from configs.base import demo_reclip


def get_config() -> ConfigDict:
    return demo_reclip.get_config("reclip")
