"""Semantic segmentation from CLIP, without pixel labels or with few, in JAX."""

from typing import Any

__all__ = ["Segmenter", "__version__", "load", "segment"]


def __getattr__(name: str) -> Any:
    # Models are imported on first use, so that `import clipseg_jax` is instant.
    if name in ("Segmenter", "segment"):
        from clipseg_jax import segmenter

        return getattr(segmenter, name)
    if name == "load":
        from clipseg_jax.segmenters import load

        return load.load
    if name == "__version__":
        from importlib.metadata import version

        return version("clipseg_jax")  # what pyproject.toml says
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
