"""CLIP-RC: zero-shot segmentation by region and class tokens."""
