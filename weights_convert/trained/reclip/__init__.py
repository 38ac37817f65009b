"""ReCLIP's trained weights."""
