"""Training, evaluation and export of the demo's tiny CLIP."""
