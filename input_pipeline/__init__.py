"""Datasets as records, pictures and labels from disk, transforms, batches to evaluate and to train.

Imports nothing of clipseg_jax. `datasets` and `images` need only Pillow; `transforms`,
`corruptions`, `pipeline` and `training` need OpenCV; TensorFlow is imported when batches are
iterated.
"""
