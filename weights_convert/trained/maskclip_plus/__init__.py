"""MaskCLIP+'s trained weights."""
