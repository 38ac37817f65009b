"""Batches for evaluation and for training."""
