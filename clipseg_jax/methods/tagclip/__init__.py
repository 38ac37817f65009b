"""TagCLIP: image labels from a frozen CLIP."""
