"""Recipes: one small file for each dataset and method; the defaults are in `base`."""
