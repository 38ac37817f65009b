"""Runs the rows of the papers' tables one after the other, and compares the numbers."""
