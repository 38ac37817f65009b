"""MaskCLIP's recipe: class embeddings, then evaluation. Nothing is trained.

    python -m clipseg_jax.main --config=configs/voc_maskclip.py --config.clip.weights=ViT-B/16

Hardware: any device; nothing is trained. Hours: not measured. Paper, VOC: mIoU 49.5 (ViT-B/16).
Ours: 57.7 on the demo world; VOC not run.
"""

from __future__ import annotations

from clipseg_jax.methods.maskclip.build import build
from clipseg_jax.stages.training_free import stages_of

STAGES = stages_of(build)
