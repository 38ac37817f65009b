"""Weights by name: downloaded once into a cache, checked, and then read as any file."""
