"""Models as files that run without this library."""

from clipseg_jax.export.model import export_model

__all__ = ["export_model"]
