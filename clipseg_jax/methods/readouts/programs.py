"""The program of the read-outs' recipe, its evaluation, by shapes."""

from __future__ import annotations

from clipseg_jax.methods.readouts.build import build
from clipseg_jax.stages.training_free import programs_of

programs = programs_of(build)
