"""MaskCLIP+: a DeepLab trained on MaskCLIP."""
