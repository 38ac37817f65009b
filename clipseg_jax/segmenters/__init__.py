"""What `clipseg_jax.load` gives: a CLIP with any words, or a trained network with its classes."""
