"""Batches to evaluate and to train on."""
