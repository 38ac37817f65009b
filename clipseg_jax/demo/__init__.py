"""The embedded default: a painted picture world and a tiny CLIP trained on it."""

from pathlib import Path

TINY_CLIP = Path(__file__).parent / "tiny_clip"
"""Hugging Face style directory of the tiny CLIP, loaded like any user's weights."""
