"""CLIP-RC's trained weights."""
