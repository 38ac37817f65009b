"""The recipe of the read-outs: class embeddings, then evaluation. Nothing is trained.

    python -m clipseg_jax.main --config=configs/voc21_readout.py:scclip \\
        --config.clip.weights=ViT-B/16

Hardware: any device; nothing is trained. Hours: not measured. Papers, VOC with background: mIoU
43.4 to 64.6 (ViT-B/16). Ours: the demo world, docs/results.md; VOC not run.
"""

from __future__ import annotations

from clipseg_jax.methods.readouts.build import build
from clipseg_jax.stages.training_free import stages_of

STAGES = stages_of(build)
