"""The one error of this package."""


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file, the fault and the remedy."""
