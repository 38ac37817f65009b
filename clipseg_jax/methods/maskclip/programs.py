"""The program of MaskCLIP's recipe, its evaluation, by shapes."""

from __future__ import annotations

from clipseg_jax.methods.maskclip.build import build
from clipseg_jax.stages.training_free import programs_of

programs = programs_of(build)
