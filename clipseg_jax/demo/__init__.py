"""The built-in demo: a world of painted pictures and a tiny CLIP trained on it."""

from pathlib import Path

TINY_CLIP = Path(__file__).parent / "tiny_clip"
"""Directory of the tiny CLIP in Hugging Face format, loaded like any other checkpoint."""
