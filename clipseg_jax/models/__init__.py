"""Networks that belong to no single method: CLIP, ResNets, DeepLab, and their layers."""
