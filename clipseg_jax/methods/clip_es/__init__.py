"""CLIP-ES: class activation maps of a frozen CLIP, and a DeepLabV2 trained on them."""
