"""What the recipes of several methods share."""
