"""Trained weights of each method, ours and published."""
