"""Machinery that knows nothing of CLIP."""
