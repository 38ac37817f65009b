"""The error type of this package."""


class CheckpointError(ValueError):
    """A file of weights cannot be used; the message names the file, the fault and the remedy."""
