"""Dataset records, images and label maps from disk, transforms, and batches for JAX.

Imports nothing of clipseg_jax. `datasets` needs only Pillow and tqdm, `batches` OpenCV as well;
TensorFlow is imported when batches are iterated, unless worker processes make their rows.
"""
