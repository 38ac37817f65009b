"""Checks datasets and writes the label files that have to be made."""
