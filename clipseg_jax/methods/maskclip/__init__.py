"""MaskCLIP: dense labels from a frozen CLIP."""
