"""Compiles a recipe's programs ahead of time for hardware that is not there; see `__main__`."""
