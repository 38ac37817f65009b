"""Datasets as records, pictures and labels from disk, transforms, and batches for evaluation.

Imports nothing of clipseg_jax. `datasets` and `images` need only Pillow; `transforms`,
`corruptions` and `pipeline` need OpenCV; TensorFlow is imported when batches are iterated.
"""
