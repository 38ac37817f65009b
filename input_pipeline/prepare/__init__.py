"""Checks datasets and makes label files."""
