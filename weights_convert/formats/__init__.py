"""File formats of other frameworks and our own; nothing here knows CLIP."""
