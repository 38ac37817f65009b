"""Datasets as records, and their images and labels on disk."""
