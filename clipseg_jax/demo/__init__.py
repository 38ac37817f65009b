"""The built-in demo: a world of painted pictures, a tiny CLIP and a tiny ResNet trained on it."""

from pathlib import Path

TINY_CLIP = Path(__file__).parent / "tiny_clip"
"""Directory of the tiny CLIP in Hugging Face format, loaded like any other checkpoint."""

TINY_RESNET = Path(__file__).parent / "tiny_resnet.pth"
"""A ResNet of the students' size, trained on image labels, in the layout of open-mmlab's files."""
