"""Infrastructure independent of CLIP: devices, files, checkpoints, optimisers, metrics."""
