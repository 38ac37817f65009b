"""File formats, of other frameworks and our own; independent of CLIP."""
